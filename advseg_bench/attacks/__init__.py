"""How is an image moved? The reference attacks; `advseg_bench.registry.catalogue.ATTACKS` lists them."""
