"""Resources, leases and placement, decided in pure code."""
