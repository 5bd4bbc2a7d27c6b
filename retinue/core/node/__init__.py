"""The node agent: one process per machine that owns its workers, resources, store and logs.

    zygote        the process that workers are forked from, and what a child does first  (a process)
    spawner       starts zygotes and workers, hears of their ends                        (a shell)
    pool          which worker serves which lease, when to start and end workers         (pure)
    accelerators  which GPUs there are                                                   (reads NVML)
    memory        which worker ends when memory runs short                               (pure, and a shell)
    logs          workers' output: folded, limited, to the drivers of their job          (pure, and a shell)
    agent         one loop that puts the rooms below together                            (a shell)
    main          the process's entry

The agent's rooms are `processes` (registration, death), `leasing` (scheduling.leases), `actors`, `store`
(objects.store), `pulling` (objects from and to other nodes), `owners` (whose they are), `cluster` (head and
other nodes) and `queries` (state for people).
"""
