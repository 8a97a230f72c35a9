"""Checks of user input: numbers, words, and fields of configs and parts."""
