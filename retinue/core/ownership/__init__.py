"""Who holds which reference, what made an object, and the memory that keeps small ones."""
