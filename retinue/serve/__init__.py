"""Serving: models as deployments, from a decorator to HTTP under load. `docs/` has the guides."""
