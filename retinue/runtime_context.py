"""What the code that asks is part of."""

from retinue.core.runtime_context import RuntimeContext, get_runtime_context

__all__ = ["RuntimeContext", "get_runtime_context"]
