"""An attack, a model, a loss and a data set for advseg-bench."""
