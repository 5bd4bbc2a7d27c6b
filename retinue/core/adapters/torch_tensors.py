"""torch CPU tensors without a copy: their bytes travel as a pickle-5 buffer.

torch pickles in band. Here a dense CPU tensor's storage goes out of band as uint8, and comes back as a
tensor over the bytes where they lie. torch knows no read-only memory, and a write through a read-only
mapping would end the process: tensors over the arena get a copy-on-write mapping of their own.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

from retinue.core.current import runtime_or_none


def reducers() -> dict[type, Callable[[Any], Any]]:
    """What the serializer's dispatch table needs. Called once torch is imported."""
    import torch

    return {torch.Tensor: _reduce, torch.nn.Parameter: _reduce_parameter}


def _reduce(tensor: Any) -> Any:
    import torch

    if (
        tensor.device.type != "cpu"
        or tensor.layout is not torch.strided
        or tensor.requires_grad
        or tensor.is_quantized
        or tensor.numel() == 0
        or tensor.is_conj()
        or tensor.is_neg()
    ):
        return tensor.__reduce_ex__(5)
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return _rebuild, (
        pickle.PickleBuffer(flat.numpy()),
        str(tensor.dtype).removeprefix("torch."),
        tuple(tensor.shape),
    )


def _reduce_parameter(parameter: Any) -> Any:
    return _rebuild_parameter, (parameter.detach(), parameter.requires_grad)


def _rebuild(buffer: Any, dtype: str, shape: tuple[int, ...]) -> Any:
    import torch

    view = memoryview(buffer)
    if view.readonly:
        runtime = runtime_or_none()
        private = runtime.store.private_view(view) if runtime is not None else None
        # A small tensor came inside a message: its bytes are nobody else's, but Python's own are immutable.
        view = private if private is not None else memoryview(bytearray(view))
    return torch.frombuffer(view, dtype=torch.uint8).view(getattr(torch, dtype)).reshape(shape)


def _rebuild_parameter(data: Any, requires_grad: bool) -> Any:
    import torch

    return torch.nn.Parameter(data, requires_grad=requires_grad)
