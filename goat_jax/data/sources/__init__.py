"""Rows from files: JSONL, CSV, Parquet, npz, image folders, TFDS."""
