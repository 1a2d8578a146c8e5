"""One file for each step of the schema, of the same name."""
