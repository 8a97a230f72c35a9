"""Layers that all model families share, and the names of the modules in a model."""
