"""The controller: target state in, reconciled replicas and proxies out.

Pure: `replica_life`, `reconciler`, `rollout`, `replica_autoscaling`, `statuses`, `placement`, `proxies`; they
decide, with the time as an argument. Shells: `actor` (the controller itself), `deployments`, `replicas`,
`proxy_fleet`; they carry out. `checkpoint` and `publisher` write to the key-value table. `start` starts it.
"""
