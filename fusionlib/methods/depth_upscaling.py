"""Depth upscaling: a deeper network out of ranges of one network's own layers, ready to be trained further."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from fusionlib.core import MethodCard, ParameterError
from fusionlib.ops.blocks import only_block_list
from fusionlib.ops.constraints import Layers
from fusionlib.ops.guided import check_one
from fusionlib.ops.restack import restacked
from fusionlib.ops.values import checked

card = MethodCard(
    name="depth_upscaling",
    title="Depth Upscaling",
    cite="Kim2024",
    kind="mix",
    takes="models",
    fuses="pretrained",
)


@checked
def fuse(
    pretrained: nn.Module,
    finetuned: Sequence[nn.Module] = (),
    *,
    layers: Layers | None = None,
) -> nn.Module:
    """Build a new stack of layers out of copies of the model's own.

    Args:
        pretrained: a module with one ``ModuleList`` of n blocks.
        finetuned: not used; every method has the same two first arguments.
        layers: what the new stack is made of, from bottom to top: indices from 0 to n - 1, and ranges (start, stop)
            without the stop. By default SOLAR's [(0, n - m), (m, n)] with an overlap of m = n // 4.
    Returns: a new module of the pretrained kind, in evaluation mode; no two blocks share weights. Its configuration
        has the new number of layers, so it can be saved and loaded. Blocks know their new positions in a cache.
    Raises: ParameterError, also where there is no single list of blocks; NonFiniteError.
    Source: Kim et al. 2024, "SOLAR 10.7B", section 2: n = 32 and m = 8 give 48 layers.
    Deviates: nothing in the stack; the paper goes on to train it, which is left to you. FusionBench takes a bare
        ``ModuleList`` and has no default. mergekit ("passthrough") reads and writes checkpoints.
    """
    check_one(pretrained)
    _, blocks = only_block_list(pretrained)
    return restacked(pretrained, _solar(len(blocks)) if layers is None else _listed(layers, len(blocks)))


def _solar(num_blocks: int) -> list[int]:
    overlap = num_blocks // 4
    return [*range(num_blocks - overlap), *range(overlap, num_blocks)]


def _listed(layers: Sequence[int | tuple[int, int]], num_blocks: int) -> list[int]:
    """The indices, ranges written out."""
    order: list[int] = []
    for entry in layers:
        start, stop = (entry, entry + 1) if isinstance(entry, int) else entry
        if not 0 <= start < stop <= num_blocks:
            raise ParameterError(
                f"layers = {layers!r} holds {entry!r}; allowed for a model of {num_blocks} blocks: indices from 0 to "
                f"{num_blocks - 1}, and ranges (start, stop) with 0 <= start < stop <= {num_blocks}."
            )
        order += range(start, stop)
    if not order:
        raise ParameterError(
            f"layers = {layers!r} names no layer; give a list of indices and (start, stop) ranges, such as "
            f"[(0, {num_blocks}), {num_blocks - 1}], which repeats the last of the model's {num_blocks} blocks."
        )
    return order
