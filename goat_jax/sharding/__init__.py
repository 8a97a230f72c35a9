"""Where every array lies on a mesh of devices: `data`, `fsdp` and `tensor`."""
