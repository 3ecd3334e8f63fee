"""A training run half-way, on disk: going on from it gives the same bits as never having stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fusionlib.core import CheckpointError
from fusionlib.zoo.files import write_atomically


def save_snapshot(
    path: Path,
    step: int,
    seconds: float,
    free: dict[str, nn.Parameter],
    buffers: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> None:
    """Write all that training needs to go on: parameters, what AdamW keeps of each, buffers such as BatchNorm's
    running statistics, and the generator's state.
    """
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {"generator": generator.get_state()}
    for name, parameter in free.items():
        tensors[f"parameter/{name}"] = parameter.detach()
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimizer/{name}/{key}"] = value
    tensors.update({f"buffer/{name}": value for name, value in buffers.items()})
    facts = {"step": str(step), "seconds": repr(seconds)}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=facts))


def resume(
    path: Path,
    free: dict[str, nn.Parameter],
    buffers: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> tuple[int, float]:
    """Take up the snapshot, if there is one: (steps done, seconds spent); CheckpointError if it can't be read."""
    if not path.is_file():
        return 0, 0.0
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            facts = file.metadata()
            saved = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (no iterator of its own)
    except SafetensorError as error:
        raise CheckpointError(
            f"the snapshot {path} can't be read ({error}). Delete it to start this training from the beginning."
        ) from error
    generator.set_state(saved["generator"])
    for name, value in buffers.items():
        value.copy_(saved[f"buffer/{name}"])
    state: dict[int, dict[str, Any]] = {}
    places = {id(p): i for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    for name, parameter in free.items():
        parameter.data.copy_(saved[f"parameter/{name}"])
        state[places[id(parameter)]] = {
            key: saved[f"optimizer/{name}/{key}"] for key in ("step", "exp_avg", "exp_avg_sq")
        }
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(facts["step"]), float(facts["seconds"])
