"""Fresh tensors without the cost of touching each small page for the first time.

Writing a result into new memory is dominated on Linux by page faults: copying 87 million float32 numbers into
new tensors took three to four times as long as copying them into used ones. A result whose memory is asked for
in one piece, and in huge pages, is spared most of them.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping

import torch
from torch import Tensor

from fusionlib.core import StateDict

_WORTHWHILE = 8 << 20  # bytes: below, the C library's memory is as good
_ALIGNED = 64  # bytes, as torch's own tensors are


def fresh_like(state: Mapping[str, Tensor]) -> StateDict:
    """Uninitialised contiguous tensors of the same names, shapes, dtypes and devices.

    On Linux those of a large state dict that are on the CPU share one piece of memory, which is given back when the
    last of them is gone. Each has a storage of its own all the same, so that they are not taken for tied weights.
    """
    offsets, length = {}, 0
    for key, tensor in state.items():
        if tensor.device.type == "cpu" and tensor.numel():
            offsets[key] = length
            length += -(-tensor.numel() * tensor.element_size() // _ALIGNED) * _ALIGNED
    memory = _huge_pages(length) if length >= _WORTHWHILE else None

    def fresh(key: str, like: Tensor) -> Tensor:
        if memory is None or key not in offsets:
            return torch.empty_like(like, memory_format=torch.contiguous_format, requires_grad=False)
        flat = torch.frombuffer(memory, dtype=like.dtype, count=like.numel(), offset=offsets[key])
        return flat.view(like.shape)

    return {key: fresh(key, tensor) for key, tensor in state.items()}


def grown(scratch: Tensor, like: Tensor, size: int) -> Tensor:
    """``scratch``, or a larger one, of the dtype and device of ``like``. New memory costs more than to fill it."""
    fits = scratch.numel() >= size and scratch.dtype == like.dtype and scratch.device == like.device
    return scratch if fits else like.new_empty(size)


def _huge_pages(length: int) -> mmap.mmap | None:
    if not hasattr(mmap, "MADV_HUGEPAGE"):  # only Linux has it
        return None
    memory = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)  # advice only: the kernel may decline it
    return memory
