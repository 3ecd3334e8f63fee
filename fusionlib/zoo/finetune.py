"""The training loop: deterministic, and resumable at the last snapshot with bit-identical results."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fusionlib.core import CheckpointError
from fusionlib.zoo.adapters import wrap
from fusionlib.zoo.backbone import Backbone
from fusionlib.zoo.files import write_atomically
from fusionlib.zoo.heads import CosineHead
from fusionlib.zoo.inputs import pixels
from fusionlib.zoo.recipe import Recipe
from fusionlib.zoo.task import Task

SNAPSHOT_STEPS = 50


@dataclass(frozen=True)
class Trained:
    """A fine-tuned module (a PEFT model for LoRA) and the seconds its training took, all sittings together."""

    model: nn.Module
    seconds: float


def finetune(
    backbone: Backbone,
    tasks: Sequence[Task],
    heads: Sequence[CosineHead],
    recipe: Recipe,
    seed: int,
    snapshot: Path,
    on_step: Callable[[int], None] = lambda step: None,
) -> Trained:
    """Train on one task, or on several at once with equal shares of the batch.

    Args:
        backbone: where to start from.
        tasks: their train splits are drawn from.
        heads: one per task, fixed.
        recipe: the settings.
        seed: of the batches and of LoRA's initial weights.
        snapshot: file written every ``SNAPSHOT_STEPS`` steps; if it exists, training goes on from it.
        on_step: called with the number of finished steps.

    Raises: CheckpointError if the snapshot can't be read.
    """
    model = _trainable(backbone, recipe, seed)
    free = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        free.values(), lr=recipe.learning_rate, betas=(0.9, 0.999), weight_decay=recipe.weight_decay
    )
    generator = torch.Generator().manual_seed(seed)
    data = [_whole(task, backbone) for task in tasks]
    done, before = _resume(snapshot, free, optimizer, generator)
    started = time.perf_counter()
    model.train()
    on_step(done)
    for step in range(done, recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * schedule(step, recipe)
        _step(model, data, heads, backbone, recipe, generator)
        torch.nn.utils.clip_grad_norm_(free.values(), recipe.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % SNAPSHOT_STEPS == 0 and step + 1 < recipe.steps:
            _save(snapshot, step + 1, before + time.perf_counter() - started, free, optimizer, generator)
        on_step(step + 1)
    return Trained(model.eval(), before + time.perf_counter() - started)


def schedule(step: int, recipe: Recipe) -> float:
    """Factor on the learning rate at a step from 0 on: linear warm-up, then a cosine to 0 at the last step."""
    return min(1.0, (step + 1) / recipe.warmup) * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))


def _trainable(backbone: Backbone, recipe: Recipe, seed: int) -> nn.Module:
    model = backbone.build()
    if recipe.rank is None:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not name.startswith(recipe.frozen))
        return model
    from peft import LoraConfig

    config = LoraConfig(r=recipe.rank, lora_alpha=recipe.alpha, target_modules=list(recipe.targets))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return wrap(model, config)


def _whole(task: Task, backbone: Backbone) -> tuple[Tensor, Tensor]:
    images, labels = zip(*pixels(task, "train", backbone.preprocess), strict=True)
    return torch.cat(images), torch.cat(labels)


def _step(
    model: nn.Module,
    data: Sequence[tuple[Tensor, Tensor]],
    heads: Sequence[CosineHead],
    backbone: Backbone,
    recipe: Recipe,
    generator: torch.Generator,
) -> None:
    """Forward all tasks' examples together, then the mean cross-entropy against each task's own head; backward."""
    drawn = [torch.randint(len(labels), (recipe.batch_size,), generator=generator) for _, labels in data]
    batch = torch.cat([images[rows] for (images, _), rows in zip(data, drawn, strict=True)])
    features = model(pixel_values=backbone.preprocess.normalise(batch)).image_embeds
    losses = [
        nn.functional.cross_entropy(head(part), labels[rows])
        for head, part, (_, labels), rows in zip(heads, features.split(recipe.batch_size), data, drawn, strict=True)
    ]
    torch.stack(losses).mean().backward()


def _save(
    path: Path,
    step: int,
    seconds: float,
    free: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> None:
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {"generator": generator.get_state()}
    for name, parameter in free.items():
        tensors[f"parameter/{name}"] = parameter.detach()
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimizer/{name}/{key}"] = value
    facts = {"step": str(step), "seconds": repr(seconds)}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=facts))


def _resume(
    path: Path, free: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, generator: torch.Generator
) -> tuple[int, float]:
    """Take up the snapshot, if there is one: (steps done, seconds spent)."""
    if not path.is_file():
        return 0, 0.0
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            facts = file.metadata()
            saved = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (no iterator of its own)
    except SafetensorError as error:
        raise CheckpointError(
            f"the snapshot {path} can't be read ({error}). Delete it to start this fine-tune from the beginning."
        ) from error
    generator.set_state(saved["generator"])
    state: dict[int, dict[str, Any]] = {}
    for index, (name, parameter) in enumerate(free.items()):
        parameter.data.copy_(saved[f"parameter/{name}"])
        state[index] = {key: saved[f"optimizer/{name}/{key}"] for key in ("step", "exp_avg", "exp_avg_sq")}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(facts["step"]), float(facts["seconds"])


@torch.inference_mode()
def accuracy(model: nn.Module, backbone: Backbone, task: Task, head: CosineHead, split: str) -> tuple[int, int]:
    """(correct, total) of a model on one split."""
    correct = total = 0
    for images, labels in pixels(task, split, backbone.preprocess):
        features = model(pixel_values=backbone.preprocess.normalise(images)).image_embeds
        correct += int((head(features).argmax(-1) == labels).sum())
        total += len(labels)
    return correct, total
