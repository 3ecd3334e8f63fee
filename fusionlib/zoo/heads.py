"""Classification heads that are never fused: one fixed vector per class, compared by cosine."""

from __future__ import annotations

import functools
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fusionlib.core import CheckpointError, ParameterError
from fusionlib.zoo.files import DATA
from fusionlib.zoo.task import Task

if TYPE_CHECKING:
    from fusionlib.zoo.backbone import ClipBackbone


class CosineHead(nn.Module):
    """Scores of classes: ``logit_scale`` times the cosine of the features and each class's vector.

    Args:
        weight: (classes, dim), one vector per class in label order; stored normalised to length 1, as a buffer.
        logit_scale: positive factor on the cosines.
    """

    weight: Tensor

    def __init__(self, weight: Tensor, logit_scale: float):
        super().__init__()
        self.register_buffer("weight", nn.functional.normalize(weight.float(), dim=-1))
        self.logit_scale = float(logit_scale)

    def forward(self, features: Tensor, batch: Any = None) -> Tensor:
        """(B, dim) features to (B, classes) logits; the batch itself is not looked at."""
        return self.logit_scale * (nn.functional.normalize(features, dim=-1) @ self.weight.T)


def make_head(task: Task, backbone: ClipBackbone, given: Tensor | str | PathLike[str] | None) -> CosineHead:
    """The head of a task: what the user gave, else the embedded one, else zero-shot from the text tower.

    Embedded heads are used where the task is embedded and the backbone scores against them, which
    ``logit_scale`` in its config says (tiny-clip and copies of it).

    Raises:
        ParameterError: the head's shape does not fit the task or the backbone, or there is no head at all.
        CheckpointError: a file of heads is missing or holds nothing for the task.
    """
    if isinstance(given, Tensor):
        weight = given
    elif given is not None:
        weight = read_head(Path(given).expanduser(), task)
    elif task.embedded and backbone.config.to_dict().get("logit_scale") is not None:
        weight = embedded_weight(task.name)
    elif backbone.text_tower is not None:
        from fusionlib.zoo.text_tower import zero_shot_weight

        weight = zero_shot_weight(backbone.text_tower(), task.prompts, task.templates)
    else:
        raise ParameterError(
            f"there is no head for task {task.name!r}: it has no embedded head for {backbone.name!r}, which has no "
            f"text tower to make one from. Pass heads={{{task.name!r}: tensor or .safetensors path}}."
        )
    wanted = (len(task.classes), backbone.dim)
    if tuple(weight.shape) != wanted:
        raise ParameterError(
            f"the head of task {task.name!r} has shape {tuple(weight.shape)}, but {wanted} is needed: one row per "
            f"class of the task, one column per feature of {backbone.name!r}."
        )
    return CosineHead(weight, backbone.logit_scale)


@functools.lru_cache(maxsize=32)
def embedded_weight(task: str) -> Tensor:
    """The shipped text embeddings of a task's class prompts, float32 (classes, 384)."""
    return read_head(DATA / "heads.safetensors", task)


def read_head(path: Path, task: Task | str) -> Tensor:
    """The weight of a task's head in a file: the tensor of the task's name, else the one called "weight", float32.

    Raises: CheckpointError, if the file is missing, unreadable, or holds neither.
    """
    from safetensors import SafetensorError, safe_open

    name = task if isinstance(task, str) else task.name
    if not path.is_file():
        raise CheckpointError(f"the head of task {name!r} should be in {path}, but there is no such file.")
    try:
        with safe_open(path, "pt") as file:
            keys = list(file.keys())
            key = name if name in keys else "weight" if "weight" in keys else None
            if key is None:
                raise CheckpointError(
                    f"{path} holds no head for task {name!r}: its tensors are {', '.join(keys) or 'none'}. Name the "
                    f"tensor {name!r} or 'weight'."
                )
            return file.get_tensor(key).to(torch.float32)
    except SafetensorError as error:
        raise CheckpointError(f"{path} can't be read as safetensors ({error}). Make or fetch it again.") from error
