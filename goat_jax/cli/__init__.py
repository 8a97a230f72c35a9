"""The command line: its parser, its errors, and the functions that it calls for each verb."""
