"""The pickler of functions and classes, under the name by which users of Ray import it."""

from cloudpickle import *  # noqa: F403
from cloudpickle import __all__ as __all__
