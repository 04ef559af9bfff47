"""Attacks. The list of names is `advseg_bench.registry.catalogue.ATTACKS`."""
