"""Pretrained files: where they are, how they are read, what identifies them."""
