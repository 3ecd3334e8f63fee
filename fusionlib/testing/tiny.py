"""Models, data and hyper-parameters small enough for a law: some dozen weights, forty examples, three steps."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fusionlib.core import FusionMethod, StateDict
from fusionlib.ops.calibration import CalibrationData


def assert_same_weights(actual: StateDict, expected: StateDict, *, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    """Raises AssertionError, naming the worst key, unless both state dicts hold the same numbers.

    Keys, shapes and dtypes must be equal, values within ``atol + rtol * |expected|``.
    """
    if actual.keys() != expected.keys():
        raise AssertionError(f"the keys differ: {sorted(actual.keys() ^ expected.keys())}")
    for key, wanted in expected.items():
        torch.testing.assert_close(
            actual[key], wanted, rtol=rtol, atol=atol, equal_nan=False, msg=lambda text, key=key: f"{key}: {text}"
        )


def tiny_model(seed: int = 0) -> nn.Module:
    """Two linear layers around batch norm (which has an integer buffer): (B, 3) to (B, 4)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 4))
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.5)
    return model.eval()


def tiny_models(num_models: int = 3, dtype: torch.dtype = torch.float32) -> tuple[StateDict, list[StateDict]]:
    """A pretrained state dict and fine-tuned ones near it; the same numbers at every call."""
    generator = torch.Generator().manual_seed(7)
    pretrained = {key: value.clone() for key, value in tiny_model().state_dict().items()}
    finetuned = []
    for _ in range(num_models):
        moved = {}
        for key, value in pretrained.items():
            noise = torch.randn(value.shape, generator=generator)
            moved[key] = value + 0.1 * noise if value.is_floating_point() else value + 1
        finetuned.append(moved)
    return cast(pretrained, dtype), [cast(state, dtype) for state in finetuned]


def tiny_data(num_tasks: int, *, order: Sequence[int] | None = None, seed: int = 0) -> CalibrationData:
    """Forty examples per task for ``tiny_model``, with a head of three classes; everything is allowed.

    Args:
        order: the tasks in another order; the data of each stay the same.
    """
    generator = torch.Generator().manual_seed(11)
    names = [f"task {index}" for index in range(num_tasks)]
    inputs = {name: torch.randn(40, 3, generator=generator) for name in names}
    labels = {name: torch.randint(3, (40,), generator=generator) for name in names}
    weights = {name: torch.randn(4, 3, generator=generator) for name in names}

    def read(task: str, split: str, indices: Sequence[int]) -> tuple[dict[str, Tensor], Tensor]:
        return {"input": inputs[task][list(indices)]}, labels[task][list(indices)]

    def head(weight: Tensor) -> Callable[[Tensor, Any], Tensor]:
        return lambda features, batch: features @ weight.to(features)

    return CalibrationData(
        tuple(names[index] for index in order or range(num_tasks)),
        {(name, split): 40 for name in names for split in ("train", "val", "test")},
        read,
        {name: head(weight) for name, weight in weights.items()},
        frozenset({"inputs", "test-inputs", "labels"}),
        seed,
    )


def tiny_transformer(seed: int = 0) -> nn.Module:
    """A CLIP vision tower of three layers and some hundred parameters; needs transformers."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
        projection_dim=4,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIPVisionModelWithProjection(config)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


def tiny_pictures(num_tasks: int, seed: int = 0) -> CalibrationData:
    """As ``tiny_data``, for ``tiny_transformer``."""
    data = tiny_data(num_tasks, seed=seed)

    def read(task: str, split: str, indices: Sequence[int]) -> tuple[dict[str, Tensor], Tensor]:
        batch, labels = data.read(task, split, indices)
        corners = batch["input"].reshape(-1, 3, 1, 1)
        return {"pixel_values": corners * torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)}, labels

    return dataclasses.replace(data, read=read)


QUICK = {"steps": 3, "num_examples": 16, "batch_size": 8}


def hyperparameters(method: FusionMethod, num_models: int) -> dict[str, Any]:
    """Values for what has no default, and few steps and examples, so that the laws can call any method quickly."""
    takes = inspect.signature(method.fuse).parameters
    given: dict[str, Any] = {name: value for name, value in QUICK.items() if name in takes}
    if "weights" in takes:
        given["weights"] = [1.0 + index for index in range(num_models)]
    return given


def cast(state: StateDict, dtype: torch.dtype) -> StateDict:
    """A copy with all floating-point entries in this dtype."""
    return {key: value.to(dtype) if value.is_floating_point() else value.clone() for key, value in state.items()}
