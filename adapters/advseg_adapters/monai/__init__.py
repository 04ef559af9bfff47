"""MONAI: a model of a suite as a MONAI network, and an attack as a MONAI dictionary transform.

MONAI's networks need no adapter: a suite names them as `monai.<Class>`.
"""

from advseg_adapters.monai.networks import GridNetwork, MetaNetwork, as_network
from advseg_adapters.monai.transforms import AdversarialAttackd, RandAdversarialAttackd

__all__ = ["AdversarialAttackd", "GridNetwork", "MetaNetwork", "RandAdversarialAttackd", "as_network"]
