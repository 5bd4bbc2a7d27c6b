"""Remote functions."""

from retinue.core.remote_function import RemoteFunction

__all__ = ["RemoteFunction"]
