"""Replays layers and complete fine-tuning runs of PyTorch and compares every quantity.

A parity bundle is a folder of numbers that anyone with the published code can write.
"""
