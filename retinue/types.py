"""Types for annotations."""

from retinue.core.references import ObjectRef

__all__ = ["ObjectRef"]
