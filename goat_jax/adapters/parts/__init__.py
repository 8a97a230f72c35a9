"""Parts that methods are made of: one file per kind of part."""
