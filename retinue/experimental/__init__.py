"""Names whose interface may still change."""
