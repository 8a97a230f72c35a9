"""Runs compiled for devices that are not at hand: bytes, FLOPs, collectives."""
