"""Benchmarks of speed and memory on the user's device, as ratios within one process."""
