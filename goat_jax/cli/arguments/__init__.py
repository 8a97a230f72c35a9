"""Arguments of the verbs, and fields of a config on a command line."""
