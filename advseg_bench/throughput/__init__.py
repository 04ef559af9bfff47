"""How fast is an attack? Implementations timed on a suite's models, relative to one bare forward and backward."""
