"""What the verbs of the command line do: call the library, print tables, draw plots."""
