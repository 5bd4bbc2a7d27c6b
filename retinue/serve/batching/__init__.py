"""`@serve.batch`: requests that come one by one are computed together.

`batcher` decides (pure), `running` runs batches on a loop, `decorator` is what users see.
"""

from retinue.serve.batching.decorator import batch

__all__ = ["batch"]
