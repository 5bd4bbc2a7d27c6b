"""Who may run what, where: pure decisions.

    resources   amounts in fixed point, and one node's instances of them
    policies    which node of a cluster view fits a request
    leases      one node's leases: demand in, grants, recalls and redirects out

Imports no I/O, clock or randomness: `now` and `rng` are arguments.
"""
