"""Adapters on Flax NNX and Flax linen models from other code bases. See docs/own_model.md."""
