"""Post-norm text encoders: BERT, RoBERTa, DistilBERT."""
