"""Where do jobs run? In this process, in worker processes, or on a cluster."""
