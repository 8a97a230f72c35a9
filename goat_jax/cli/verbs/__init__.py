"""The verbs of the command line: each calls the library, prints tables and draws plots."""
