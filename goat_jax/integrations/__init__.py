"""Adapters on models of your own: Flax NNX, Flax linen. See docs/own_model.md."""
