"""Adapters between advseg-bench and ART, torchattacks, Foolbox and MONAI. The core never imports this package."""
