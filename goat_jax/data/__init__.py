"""Data: where rows come from, which task they make, and how they become batches.

The path of a row: `sources` (a file or a TFDS name gives rows) -> `tasks` (columns, class names,
metrics give `Examples`) -> `tokenize` (token ids) -> `batching` (which rows share a batch, and its
padded length) -> `pipeline` (a checkpointable iterator of numpy batches). `metrics` scores the
answers. Another family of tasks is another file beside `text.py`: for images it is
`image_tasks`, and `images` gives the rows.
"""
