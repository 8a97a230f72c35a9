"""Ahead-of-time plans of runs for other devices: bytes, FLOPs and collectives of a step."""
