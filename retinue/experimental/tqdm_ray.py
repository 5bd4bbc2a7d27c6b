"""Progress bars from any task or actor, drawn by the driver. The names under which Ray offers them.

from retinue.experimental import tqdm_ray

@retinue.remote
def work(items):
    for item in tqdm_ray.tqdm(items, desc="work"):
        ...
"""

from retinue.util.bars.bar import tqdm
from retinue.util.bars.manager import BarManager, draw_line, instance, safe_print
from retinue.util.bars.wire import MAGIC as RETINUE_TQDM_MAGIC

__all__ = ["RETINUE_TQDM_MAGIC", "BarManager", "draw_line", "instance", "safe_print", "tqdm"]
