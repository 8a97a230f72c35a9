"""Data sets fetched from their official files and written in one layout."""
