"""Classification heads that are never fused: one fixed vector per class, compared by cosine."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fusionlib.core import CheckpointError, NonFiniteError, ParameterError, StateDict
from fusionlib.zoo.files import DATA
from fusionlib.zoo.task import Task

if TYPE_CHECKING:
    from fusionlib.zoo.backbone import ClipBackbone, GivenHead


HEADS = "heads.safetensors"  # the file beside a fine-tune's weights, where heads are trained along


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


def make_head(task: Task, backbone: ClipBackbone, given: GivenHead) -> CosineHead:
    """The head of a task: what the user gave, else the embedded one, else zero-shot from the text tower.

    Embedded heads are used where the task is embedded and the backbone scores against them, which
    ``logit_scale`` in its config says (tiny-clip and copies of it).

    Raises:
        ParameterError: the head's shape does not fit the task or the backbone, or there is no head at all.
        CheckpointError: a file of heads is missing or holds nothing for the task.
        NonFiniteError: it has NaN or Inf.
    """
    if given is not None:
        weight = given_weight(given, task)
    elif task.embedded and backbone.config.to_dict().get("logit_scale") is not None:
        weight = embedded_weight(task.name)
    elif backbone.text_tower is not None:
        from fusionlib.zoo.text_tower import kept_weight

        weight = kept_weight(backbone.text_tower(), task.prompts, task.templates)
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
    check_finite({"weight": weight}, task)
    return CosineHead(weight, backbone.logit_scale)


def check_finite(state: Mapping[str, Tensor], task: Task) -> None:
    """Raise NonFiniteError if a head has NaN or Inf: it would find the same class in every example."""
    for name, value in state.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise NonFiniteError(
                f"the head of task {task.name!r} has values that are not finite, in {name!r}. Make or fetch it again."
            )


@functools.lru_cache(maxsize=32)
def embedded_weight(task: str) -> Tensor:
    """The shipped text embeddings of a task's class prompts, float32 (classes, 384)."""
    return read_head(DATA / "heads.safetensors", task)


def given_weight(given: Tensor | Mapping[str, Tensor] | str | PathLike[str], task: Task) -> Tensor:
    """The one weight of a head that a user gave, or that was trained; ParameterError, CheckpointError."""
    if isinstance(given, Tensor):
        return _numbers(given, task)
    if not isinstance(given, Mapping):
        return read_head(_path(given, task), task)
    if list(given) != ["weight"]:
        raise ParameterError(
            f"the head of task {task.name!r} has the tensors {', '.join(given) or 'none'}; here a head is a single "
            "tensor, called 'weight'."
        )
    return _numbers(given["weight"], task)


def _numbers(weight: Any, task: Task) -> Tensor:
    """The weight as float32; ParameterError, for what is no tensor of real numbers."""
    kind = f"{type(weight).__name__}" + (f" of {weight.dtype}" if isinstance(weight, Tensor) else "")
    if not isinstance(weight, Tensor) or weight.is_complex() or weight.is_quantized or weight.dtype == torch.bool:
        raise ParameterError(
            f"the head of task {task.name!r} is a {kind}; it must be a tensor of real numbers, or a safetensors file."
        )
    return weight.to(torch.float32)


def _path(given: Any, task: Task) -> Path:
    try:
        return Path(given).expanduser()
    except (TypeError, RuntimeError) as error:
        raise ParameterError(
            f"the head of task {task.name!r} is {given!r}, no tensor and no path ({error}). Give a tensor or a "
            "safetensors file."
        ) from error


def read_head(path: Path, task: Task | str) -> Tensor:
    """The weight of a task's head in a file: the tensor of the task's name, else the one called "weight", float32.

    Raises: CheckpointError, if the file is missing, unreadable, or holds neither.
    """
    name = task if isinstance(task, str) else task.name
    found = _read_tensors(path, name, lambda key: key in (name, "weight"))
    if not found:
        raise CheckpointError(
            f"{path} holds no head for task {name!r}: its tensors are {_listed(path)}. Name the "
            f"tensor {name!r} or 'weight'."
        )
    found_weight = found[name] if name in found else found["weight"]
    if not found_weight.is_floating_point():
        raise CheckpointError(f"the head of task {name!r} in {path} is {found_weight.dtype}, not floating point.")
    return found_weight.to(torch.float32)


def read_head_state(path: Path, task: str) -> StateDict:
    """All tensors of a task's head in a file that ``head_tensors`` filled; CheckpointError, if there are none."""
    found = _read_tensors(path, task, lambda key: key == task or key.startswith(f"{task}."))
    if not found:
        raise CheckpointError(f"{path} holds no head for task {task!r}: its tensors are {_listed(path)}.")
    return {"weight" if key == task else key.removeprefix(f"{task}."): value for key, value in found.items()}


def head_tensors(task: str, head: nn.Module) -> StateDict:
    """The tensors of a head under the names of a file: the task's where it is a single weight, else task.name."""
    state = {name: value.detach().contiguous() for name, value in head.state_dict().items()}
    return {task: state["weight"]} if list(state) == ["weight"] else {f"{task}.{n}": v for n, v in state.items()}


def _read_tensors(path: Path, task: str, wanted: Callable[[str], bool]) -> StateDict:
    from safetensors import SafetensorError, safe_open

    try:
        if not path.is_file():
            raise CheckpointError(f"the head of task {task!r} should be in {path}, but there is no such file.")
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys() if wanted(key)}  # noqa: SIM118  (no iterator)
    except CheckpointError:
        raise
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} can't be read as safetensors ({error}). Make or fetch it again.") from error


def _listed(path: Path) -> str:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return ", ".join(file.keys()) or "none"
