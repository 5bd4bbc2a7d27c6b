"""Which replica answers each request: the scheduler (pure), its shell, and admission at the replica."""
