"""Builds data sets from their official files in the layout of tensorflow_datasets."""
