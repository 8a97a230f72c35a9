"""Replay of numbers that PyTorch wrote: layers and whole fine-tuning runs, compared quantity by
quantity. A parity bundle is a folder that anyone with the published code can write."""
