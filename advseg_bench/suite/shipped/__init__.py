"""The suites in the package: TOML files, read by `advseg_bench.Suite.load`."""
