"""GGUF files: config, tokenizer and weights."""
