"""Adapters of advseg-bench for ART, torchattacks, Foolbox and MONAI; the core never imports this package."""
