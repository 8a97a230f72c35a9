"""Layers shared by all model families, and the names of a model's modules."""
