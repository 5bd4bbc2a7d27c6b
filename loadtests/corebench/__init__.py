"""The benchmark of tasks, actors and objects: rows, the process that runs them, the floor, the report.

Lives here: everything behind `loadtests/core.py`. Rows use only public names that Retinue and Ray both have,
and receive the imported module as an argument, so one function measures both.
"""
