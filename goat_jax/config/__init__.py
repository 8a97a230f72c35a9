"""Configuration of a run, from config files and command lines."""
