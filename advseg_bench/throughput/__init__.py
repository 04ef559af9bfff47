"""How fast is an attack? Implementations timed side by side on a suite's models, beside the bare limit."""
