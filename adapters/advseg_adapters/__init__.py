"""Adapters between advseg-bench and adversarial toolkits.

The adapters of ART, torchattacks, Foolbox and MONAI are being written; nothing is here yet. The core never imports
this package.
"""
