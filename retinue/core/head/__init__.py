"""The cluster's small truth: nodes, actors, jobs and key-value, durable where it must be."""
