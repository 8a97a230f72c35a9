"""The run folder: one writer, checksums, the best step, restoring."""
