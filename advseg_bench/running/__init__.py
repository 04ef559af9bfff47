"""How is a suite run? From missing cells to jobs, workers, attacked images and rows."""
