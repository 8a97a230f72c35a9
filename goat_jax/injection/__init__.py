"""Injects adapters into a model: targets, decompositions, sharded initialization."""
