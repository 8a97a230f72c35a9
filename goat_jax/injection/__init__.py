"""Adapters put into a model: targets, decompositions, sharded initialization."""
