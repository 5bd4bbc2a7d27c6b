"""The `serve` command: run, deploy and look at applications.

Lives here: options, tables, messages, waiting. Does not: what the controller does (`controller`), or checking
config files (`schema_file`). Each command's module is imported when it is used.
"""
