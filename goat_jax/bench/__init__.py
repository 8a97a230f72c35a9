"""Measurements of speed and memory on the user's own device, as ratios within one process."""
