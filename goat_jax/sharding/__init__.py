"""Sharding of every array over the mesh axes `data`, `fsdp`, `tensor` and `sequence`."""
