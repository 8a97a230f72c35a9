"""Sharding of every array over a mesh of devices with axes `data`, `fsdp` and `tensor`."""
