"""Benchmark suite for an accelerator: a fixed budget of minutes, one table."""
