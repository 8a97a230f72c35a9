"""Tasks: which columns of the rows are learned from, and how the answers are scored."""
