"""The parts that methods are made of, one kind a file."""
