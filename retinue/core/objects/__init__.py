"""The object store of one node: one shared arena, its bookkeeping, spilling and transfer.

    pure    layout      page sizes and rounding
            allocator   which bytes of the arena an allocation gets
            decisions   what the store tells the agent to do
            store       facts in, decisions out: space, seals, gets, pins, spilling, deaths
            shelves     its mechanical half: places, uses, idle lists; over `records`
            census      what people ask: objects, pins, holders
            cursor      bump allocation inside a slab, in the client
            pull        which chunk to ask of which node
    memory  arena       the memfd and its mappings; mapped files
            views       memory as memoryviews with pins; copies
            libc        the system calls under both
    threads keeper      touches and punches ranges
            spill       writes, reads, makes and deletes files
            transfer    bytes between machines, over `bulk_wire`
            budget      how large the arena may be (reads /proc and /sys)

The node agent owns all of it: it calls the store as messages come in, sends clients what is for them, gives
`Warm` and `Punch` to the keeper, `Spill`, `Restore`, `MakeFile` and `DeleteFile` to the spill thread. What
those report goes to `ObjectStore.finished`; `tick` is called at `next_deadline`. Clients (drivers, workers)
use `arena`, `views` and `cursor`. Knows nothing of messages, owners or references.
"""
