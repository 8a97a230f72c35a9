"""Data of trained runs, collected for tables and plots."""
