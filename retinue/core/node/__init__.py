"""One machine: its worker pool, leases, object store, logs and memory."""
