"""The calling side: leases in use, calls in flight, references, futures."""
