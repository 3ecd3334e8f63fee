"""Model recombination: the layers of T models are dealt out anew, and T models come back with every layer in one."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from typing import Literal

import torch

from fusionlib.core import MethodCard, StateDict
from fusionlib.ops.finite import check_inputs_finite
from fusionlib.ops.statedict import check_compatible, fused_names
from fusionlib.ops.streaming import stream
from fusionlib.ops.values import checked

card = MethodCard(
    name="model_recombination",
    title="Model Recombination",
    cite="Hu2022a",
    kind="mix",
    scope="tensor",
    symmetric=False,
    identity={},
)

# "layers.3" of a list of blocks, or "encoder_layer_3" as torchvision names them.
_NUMBERED = re.compile(r"(.*_)?\d+")


@checked
def fuse(
    pretrained: StateDict,
    finetuned: Sequence[StateDict],
    *,
    seed: int = 0,
    return_all: bool = False,
    unit: Literal["block", "tensor"] = "block",
) -> StateDict | list[StateDict]:
    """Permute every group of corresponding layers over the models, each group by its own random permutation.

    Args:
        pretrained: gives keys, dtypes, ties and integer buffers; its weights are not used.
        seed: of the permutations, with each group's name and nothing else.
        return_all: all T recombined models as a list, or only the first.
        unit: what moves together: a "block" (all that shares a name up to its first number, as in "layers.3"; outside
            of blocks, all tensors of one module), or each "tensor" alone.
    Returns: a state dict with the keys, shapes and dtypes of ``pretrained``, or T of them, in which every layer of
        every model is used exactly once.
    Raises: ParameterError, KeyMismatch, NonFiniteError.
    Source: Hu et al. 2022, "FedMR: Federated learning via model recombination", the server's step between two rounds
        of training.
    Deviates: the paper's layers are ours with unit="block". FusionBench shuffles a module's single tensors, without a
        seed, and integer buffers with them.
    """
    check_compatible(pretrained, finetuned)
    check_inputs_finite(pretrained, finetuned)
    dealt = {
        name: _permutation(seed, group_of(name) if unit == "block" else name, len(finetuned))
        for name in fused_names(pretrained)
    }
    made = [
        stream(pretrained, finetuned, lambda block, t=t: block.models[dealt[block.name][t]], reads_base=False)
        for t in range(len(finetuned) if return_all else 1)
    ]
    return made if return_all else made[0]


def group_of(name: str) -> str:
    """The block that a tensor belongs to: its name up to the first number; or the module, where there is none."""
    parts = name.split(".")
    for index, part in enumerate(parts[:-1]):
        if _NUMBERED.fullmatch(part):
            return ".".join(parts[: index + 1])
    return ".".join(parts[:-1])


def _permutation(seed: int, group: str, num_models: int) -> list[int]:
    # torch's CPU generator looks at 32 bits of its seed only, so seed and name both go into them
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}\n{group}".encode()))
    return torch.randperm(num_models, generator=generator).tolist()
