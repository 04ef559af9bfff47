"""Which suites come with the package? TOML files, read by `advseg_bench.Suite.load`."""
