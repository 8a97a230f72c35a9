"""Trained runs in use: predictions for rows without labels, from Python and into files."""
