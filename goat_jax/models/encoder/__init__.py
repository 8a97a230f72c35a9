"""Text encoders: BERT and RoBERTa and those that came after them, as one network."""
