"""Numbers of finished runs, collected for tables and plots."""
