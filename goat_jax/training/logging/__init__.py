"""Logging of a run: metrics, progress, throughput, norms, profiles."""
