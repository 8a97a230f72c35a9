"""Benchmarks of the paper: tasks with fixed files, columns and metrics."""
