"""A network whose blocks are repeated, left out or put in another order, with a configuration that says so."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from fusionlib.core import ParameterError
from fusionlib.ops.blocks import only_block_list

# Under what names transformers' configurations (and a few modules) keep the number of blocks, a list with one entry
# per block, and a block its own position, by which it finds its keys and values in a cache.
_COUNTS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers")
_LISTS = ("layer_types", "mlp_layer_types", "layers_block_type", "no_rope_layers", "layer_rope_theta")
_POSITIONS = ("layer_idx", "layer_id")


def restacked(model: nn.Module, order: Sequence[int]) -> nn.Module:
    """A deep copy of the model whose block at position p is a deep copy of block ``order[p]``, in evaluation mode.

    The configuration, if there is one, is that of the new model, so that ``from_pretrained`` finds what
    ``save_pretrained`` wrote.

    Args:
        model: with exactly one ``ModuleList`` of blocks.
        order: indices of blocks, each from 0 to their number - 1, at least one.
    Raises: ParameterError, if there is no such list, or if no configuration could describe the new model.
    """
    name, blocks = only_block_list(model)
    made = copy.deepcopy(model)
    counted = [holder for holder in _configurations(made, name) if _counts(holder, len(blocks))]
    if any(True for _ in _configurations(made, name)):
        if not counted:
            raise ParameterError(
                f"the configuration of {type(model).__name__} does not say how many blocks {name!r} has, so it could "
                "not say how many the new model has. Pass the list of blocks itself."
            )
        _check_describable(blocks, order, counted)
    stack = made.get_submodule(name)
    assert isinstance(stack, nn.ModuleList)
    del stack[:]
    stack.extend(copy.deepcopy(blocks[index]) for index in order)
    for position, block in enumerate(stack):
        for module in block.modules():
            for attribute in _POSITIONS:
                if type(getattr(module, attribute, None)) is int:
                    setattr(module, attribute, position)
    for holder in (*counted, *_ancestors(made, name)):
        _describe(holder, len(blocks), order)
    return made.eval()


def _ancestors(model: nn.Module, name: str) -> Iterator[nn.Module]:
    """The modules that hold the list, from the model inwards, without the list itself."""
    parts = name.split(".") if name else []
    for depth in range(len(parts)):
        yield model.get_submodule(".".join(parts[:depth]))


def _configurations(model: nn.Module, name: str) -> Iterator[Any]:
    seen = set()
    for module in _ancestors(model, name):
        config = getattr(module, "config", None)
        if config is not None and id(config) not in seen:
            seen.add(id(config))
            yield config


def _counts(holder: Any, num_blocks: int) -> list[str]:
    return [n for n in _COUNTS if type(getattr(holder, n, None)) is int and getattr(holder, n) == num_blocks]


def _describe(holder: Any, num_blocks: int, order: Sequence[int]) -> None:
    lists = {n: getattr(holder, n) for n in _LISTS if isinstance(getattr(holder, n, None), list | tuple)}
    for attribute in _counts(holder, num_blocks):
        setattr(holder, attribute, len(order))
    for attribute, values in lists.items():
        if len(values) == num_blocks:
            setattr(holder, attribute, [values[index] for index in order])


def _check_describable(blocks: nn.ModuleList, order: Sequence[int], configurations: Sequence[Any]) -> None:
    """Refuses what a configuration has no word for: it builds block p by its position p."""
    if any(getattr(config, "scale_attn_by_inverse_layer_idx", False) for config in configurations):
        raise ParameterError(
            "with scale_attn_by_inverse_layer_idx a block depends on its position, and cannot be moved to another."
        )
    shapes = [tuple((key, value.shape) for key, value in block.state_dict().items()) for block in blocks]
    usual = Counter(shapes).most_common(1)[0][0]
    for index, own in enumerate(shapes):
        if own != usual and [position for position, used in enumerate(order) if used == index] != [index]:
            odd = sorted({key for key, _ in set(own) ^ set(usual)})
            raise ParameterError(
                f"block {index} differs from most others in {', '.join(odd[:3])}, and a configuration can have such a "
                f"block in its own place only: use it once, at position {index} of `layers`, not as in {list(order)}."
            )
