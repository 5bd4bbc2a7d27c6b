"""Looking at a cluster from outside: what is there, what it did, its logs and metrics.

Lives here: rows of each kind (`schemas`, `rows`), choosing among them (`filters`), counting them
(`summaries`), the trace (`timeline`), asking a cluster (`ask`), and the admin server (`server`).
Does not: commands (`core.cli`) or the public functions (`retinue.util.state`).
"""
