"""Where the repeated parts of a network are: its blocks, and the dense MLP inside each block."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from fusionlib.core import NotApplicable

# What transformers calls the MLP of a block: ViT, CLIP, GPT-2, Llama and Mistral; then T5.
MLP_NAMES = ("mlp", "DenseReluDense")


def block_lists(model: nn.Module) -> dict[str, list[str]]:
    """Names of the blocks, under the name of the list that holds them, in the order of the model.

    A list is an outermost ``ModuleList`` or ``Sequential``: a T5 has two (encoder and decoder), a ResNet of
    torchvision one per stage. The name "" is the model itself, if it is a ``Sequential``.
    """
    return {
        name: [f"{name}.{child}".lstrip(".") for child, _ in found.named_children()] for name, found in _lists(model)
    }


def only_block_list(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The name and the ``ModuleList`` of the blocks, for a model that has one.

    Raises: NotApplicable, naming what was found, if there is none or more than one.
    """
    found = [(name, blocks) for name, blocks in _lists(model) if isinstance(blocks, nn.ModuleList)]
    if len(found) != 1:
        names = ", ".join(f"{name!r} ({len(blocks)} blocks)" for name, blocks in found) or "none"
        raise NotApplicable(
            f"{type(model).__name__} has {len(found)} lists of blocks ({names}) and exactly one is needed. "
            "Pass the part of the model that has one, such as a T5's encoder."
        )
    return found[0]


def mlp_names(model: nn.Module) -> list[str]:
    """Names of the dense MLPs, in the order of the model: submodules called ``mlp`` or ``DenseReluDense``.

    Raises: NotApplicable, if there is none, as in a ResNet, or if they were replaced already.
    """
    names = [
        name
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in MLP_NAMES and _num_matrices(module) >= 2
    ]
    if not names:
        raise NotApplicable(
            f"{type(model).__name__} has no dense MLP (a submodule called {' or '.join(MLP_NAMES)} that holds at least "
            "two linear layers). Transformers of the kinds ViT, GPT-2, T5 and Llama have."
        )
    return names


def _num_matrices(module: nn.Module) -> int:
    # direct children only: a mixture of experts holds its linear layers one level deeper
    weights = [getattr(child, "weight", None) for child in module.children()]
    return sum(isinstance(weight, Tensor) and weight.ndim == 2 for weight in weights)


def _lists(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.ModuleList | nn.Sequential]]:
    if isinstance(module, nn.ModuleList | nn.Sequential):
        if len(module):
            yield name, module
        return
    for child_name, child in module.named_children():
        yield from _lists(child, f"{name}.{child_name}".lstrip("."))
