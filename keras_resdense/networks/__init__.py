"""The networks: a paper is a file, a variant is a row."""
