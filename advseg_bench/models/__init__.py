"""Which network is attacked? Building, training, loading and preparing segmentation models."""
