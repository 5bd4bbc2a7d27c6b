"""The `retinue` command: start and stop nodes, look at a cluster.

Lives here: options, tables, messages. Does not: what is shown (`core.admin`), or starting processes
(`core.cluster`).
"""
