"""Tasks: the columns of the rows to train on, and the metrics that score predictions."""
