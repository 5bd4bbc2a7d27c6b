"""The shells that carry the wire protocol: one for threads, one for event loops."""
