"""The training loop: deterministic, and resumable at the last snapshot with bit-identical results."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from fusionlib.ops.modules import output_tensor, predict
from fusionlib.zoo.adapters import wrap
from fusionlib.zoo.backbone import Backbone
from fusionlib.zoo.l_lora import LinearizedClip
from fusionlib.zoo.reading import Draw
from fusionlib.zoo.recipe import Recipe
from fusionlib.zoo.snapshots import resume, save_snapshot
from fusionlib.zoo.task import Task

SNAPSHOT_STEPS = 50
EVALUATED = 256  # examples at once


@dataclass(frozen=True)
class Trained:
    """A fine-tuned module (a PEFT model for LoRA) and the seconds its training took, all sittings together."""

    model: nn.Module
    seconds: float


def finetune(
    backbone: Backbone,
    tasks: Sequence[Task],
    heads: Sequence[nn.Module],
    recipe: Recipe,
    seed: int,
    snapshot: Path,
    on_step: Callable[[int], None] = lambda step: None,
) -> Trained:
    """Train on one task, or on several at once with equal shares of the batch.

    Args:
        backbone: where to start from.
        tasks: their train splits are drawn from.
        heads: one per task; those that have parameters are trained too, in place.
        recipe: the settings.
        seed: of the batches and of LoRA's initial weights.
        snapshot: file written every ``SNAPSHOT_STEPS`` steps; if it exists, training goes on from it.
        on_step: called with the number of finished steps.

    Raises: CheckpointError if the snapshot can't be read.
    """
    model = _trainable(backbone, recipe, seed)
    free = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for task, head in zip(tasks, heads, strict=True):
        free.update({f"{task.name} head.{name}": p for name, p in head.named_parameters()})
    optimizer = torch.optim.AdamW(
        free.values(), lr=recipe.learning_rate, betas=(0.9, 0.999), weight_decay=recipe.weight_decay
    )
    generator = torch.Generator().manual_seed(seed)
    draw = backbone.preprocess.drawing(tasks, recipe, seed)
    done, before = resume(snapshot, free, optimizer, generator)
    started = time.perf_counter()
    model.train()
    on_step(done)
    for step in range(done, recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * schedule(step, recipe)
        _step(model, heads, draw, step, generator)
        torch.nn.utils.clip_grad_norm_(free.values(), recipe.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % SNAPSHOT_STEPS == 0 and step + 1 < recipe.steps:
            save_snapshot(snapshot, step + 1, before + time.perf_counter() - started, free, optimizer, generator)
        on_step(step + 1)
    return Trained(model.eval(), before + time.perf_counter() - started)


def schedule(step: int, recipe: Recipe) -> float:
    """Factor on the learning rate at a step from 0 on: linear warm-up, then a cosine to 0 at the last step."""
    return min(1.0, (step + 1) / recipe.warmup) * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))


def _trainable(backbone: Backbone, recipe: Recipe, seed: int) -> nn.Module:
    model = backbone.build()
    if recipe.rank is None or isinstance(backbone, LinearizedClip):  # whose parameters are the adapter's alone
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not name.startswith(recipe.frozen))
        return model
    from peft import LoraConfig

    config = LoraConfig(r=recipe.rank, lora_alpha=recipe.alpha, target_modules=list(recipe.targets))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return wrap(model, config)


def _step(model: nn.Module, heads: Sequence[nn.Module], draw: Draw, step: int, generator: torch.Generator) -> None:
    """Forward all tasks' examples together, then the mean cross-entropy against each task's own head; backward."""
    batch, labels = draw(step, generator)
    features = output_tensor(model(**batch))
    losses, start = [], 0
    for head, answers in zip(heads, labels, strict=True):
        rows = slice(start, start := start + len(answers))
        scores = head(features[rows], {name: value[rows] for name, value in batch.items()})
        losses.append(nn.functional.cross_entropy(scores, answers))
    torch.stack(losses).mean().backward()


@torch.inference_mode()
def accuracy(model: nn.Module, backbone: Backbone, task: Task, head: nn.Module, split: str) -> tuple[int, int]:
    """(correct, total) of a model on one split."""
    correct = total = 0
    for batch, labels in backbone.preprocess.batches(task, split, None, EVALUATED, torch.device("cpu")):
        correct += int((predict(model, head, batch).argmax(-1) == labels).sum())
        total += len(labels)
    return correct, total
