"""Arguments of the verbs, and config fields on the command line."""
