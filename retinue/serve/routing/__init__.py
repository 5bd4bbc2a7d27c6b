"""Which replica answers each request: the scheduler (pure), its shell, and the replica's side of admission."""
