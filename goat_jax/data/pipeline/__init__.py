"""From rows to batches: tokens, images, packing, buckets, a checkpointable iterator."""
