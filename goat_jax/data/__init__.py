"""Data: sources of rows, tasks, and the pipeline that turns rows into batches.

A row passes through `sources` (reads a file or a TFDS data set), `tasks` (picks columns, class
names and metrics), `pipeline.tokenize` (token ids), `pipeline.batching` (groups rows into batches
and chooses the padded length) and `pipeline.loader` (a checkpointable iterator of numpy batches).
`metrics` scores predictions, and `prepare` builds data sets from their official archives. Each
family of tasks is one file in `tasks`; for images it is `tasks.image`, and `pipeline.images`
supplies the rows.
"""
