"""MONAI: a grid model as one of its networks, an attack as one of its dictionary transforms.

The other way round needs no adapter: a suite names MONAI's networks as `monai.<Class>`.
"""

from advseg_adapters.monai.networks import GridNetwork, MetaNetwork, as_network
from advseg_adapters.monai.transforms import AdversarialAttackd, RandAdversarialAttackd

__all__ = ["AdversarialAttackd", "GridNetwork", "MetaNetwork", "RandAdversarialAttackd", "as_network"]
