"""Llama-like decoders."""
