"""The object store of one node: one shared arena, its bookkeeping, spilling and transfer.

    layout      page sizes and rounding                       (pure)
    allocator   who gets which bytes of the arena             (pure)
    decisions   what the store tells the agent to do          (pure)
    store       objects, pins, waiting requests, spill plans  (pure)
    cursor      bump allocation inside a slab, in the client  (pure)
    pull        which chunk to ask of which source            (pure)
    arena       the memfd, its mappings and views             (memory)
    keeper      the thread that touches and punches ranges    (a thread)
    spill       the thread that writes and reads spill files  (a thread)
    transfer    bytes between two machines over a socket      (threads)
    budget      how large the arena may be                    (reads /proc and /sys)

The node agent owns the arena, feeds facts to `ObjectStore` and carries its decisions out. Clients
(drivers and workers) use `arena` and `cursor` only. Knows nothing of messages, owners or references.
"""
