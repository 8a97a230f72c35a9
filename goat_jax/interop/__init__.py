"""Other people's formats of adapters and models: PEFT, the published code, merged checkpoints."""
