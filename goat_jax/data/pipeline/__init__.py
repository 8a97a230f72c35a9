"""Turns rows into batches: tokens, images, packing, length buckets, a checkpointable iterator."""
