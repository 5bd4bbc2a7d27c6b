"""One file for each heavy optional package that the core knows about."""
