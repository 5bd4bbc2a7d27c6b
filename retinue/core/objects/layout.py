"""Sizes and rounding that every part of the object store agrees on."""

PAGE = 4096
"""What the agent hands out, touches and punches in; also where spilled objects start in their file."""

HUGE = 2 << 20
"""One huge page. Slabs and objects of at least this size start on one: MADV_COLLAPSE needs that."""

ALIGN = 64
"""Objects inside a slab, and buffers inside an object, start on a cache line."""

SINGLE_MIN = 4 << 20
"""Objects above this are allocated one by one; smaller ones share slabs."""


def round_up(size: int, step: int) -> int:
    """Round `size` up to a multiple of `step`, a power of two."""
    return (size + step - 1) & -step


def round_down(size: int, step: int) -> int:
    """Round `size` down to a multiple of `step`, a power of two."""
    return size & -step
