"""Attacks. The list of names is `advseg_bench.catalogue.ATTACKS`."""
