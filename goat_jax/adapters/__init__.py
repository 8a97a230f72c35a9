"""A method is a choice of parts: an initializer x a base edit x a router x a combine x a scale x an
auxiliary loss (`AdapterSpec`); the named methods are rows of one table (`METHODS`)."""
