"""How is it run? From missing cells to jobs, workers, attacked images and rows."""
