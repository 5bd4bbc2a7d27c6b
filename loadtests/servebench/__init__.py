"""The benchmark of serving: peers, the load, rows with their targets, the report.

Lives here: everything behind `loadtests/compare.py`. `apps` holds the same applications for every peer.
"""
