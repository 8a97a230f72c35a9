"""Configuration of a run, and how files and command lines become one."""
