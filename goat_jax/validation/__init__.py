"""Checks of values that people give: numbers, words, fields of configs and parts."""
