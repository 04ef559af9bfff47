"""`python -m advseg_bench` is the command `advseg-bench`."""

from advseg_bench.cli.app import main

if __name__ == "__main__":
    main()
