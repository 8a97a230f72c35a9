"""Import and export of adapters and models: PEFT, the published code, merged checkpoints."""
