"""Progress bars that any process of a cluster may move and the driver draws.

`wire` is what a bar says about itself, `board` decides what is drawn where (pure), `manager` draws it with
tqdm, `bar` is the class that user code holds. Ray's names for them are in `retinue.experimental.tqdm_ray`.
"""
