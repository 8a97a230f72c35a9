"""Evaluation of language models: generation, log-likelihoods, code, a judge."""
