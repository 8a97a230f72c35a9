"""Run folders and checkpoints: locking, identity, saving, checksums and restoring."""
