"""Pretrained files: finding, reading and identifying them."""
