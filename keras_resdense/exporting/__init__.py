"""Built models into files, each read back and compared."""
