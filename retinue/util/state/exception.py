"""What the functions of `retinue.util.state` raise."""

from retinue.core.admin.ask import RetinueStateApiException, ServerUnavailable

__all__ = ["RetinueStateApiException", "ServerUnavailable"]
