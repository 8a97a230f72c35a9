"""Readers of rows: JSONL, CSV, Parquet, npz, image folders, TFDS, the Hugging Face hub."""
