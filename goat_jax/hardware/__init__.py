"""Accelerators: their data-sheet limits, and descriptions of devices to compile for."""
