"""The training loop: deterministic, and resumable at the last snapshot with bit-identical results."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fusionlib.ops.modules import output_tensor, predict
from fusionlib.zoo.adapters import wrap
from fusionlib.zoo.backbone import Backbone
from fusionlib.zoo.l_lora import LinearizedClip
from fusionlib.zoo.layer_lora import LayerLinearizedClip
from fusionlib.zoo.losses import Loss
from fusionlib.zoo.reading import Batch
from fusionlib.zoo.recipe import Recipe
from fusionlib.zoo.snapshots import resume, save_snapshot
from fusionlib.zoo.task import Task

SNAPSHOT_STEPS = 50
EVALUATED, SMALL = 256, 16  # examples at once; of dense prediction
CPU = torch.device("cpu")


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
    device: torch.device = CPU,
    factor: Callable[[int, Recipe], float] | None = None,
    every: int | None = None,
    mixed: bool = False,
) -> Trained:
    """Train on one task, or on several at once with equal shares of the batch.

    Args:
        backbone: where to start from.
        tasks: their train splits are drawn from.
        heads: one per task; those that have parameters are trained too, in place.
        recipe: the settings.
        seed: of the batches and of LoRA's initial weights.
        snapshot: file written now and then; if it exists, training goes on from it.
        on_step: called with the number of finished steps.
        device: where to train; the model and the heads stay there.
        factor: (step, recipe) -> factor on the learning rate; ``schedule`` if None.
        every: steps between two snapshots; ``SNAPSHOT_STEPS`` if None.
        mixed: run the model, not its heads, in bfloat16 where the device is CUDA; weights stay float32.

    Raises: CheckpointError if the snapshot can't be read.
    """
    model = _trainable(backbone, recipe, seed).to(device)
    free = {name: p for name, p in model.named_parameters() if p.requires_grad}
    buffers = _buffers(model)
    for task, head in zip(tasks, heads, strict=True):
        head.to(device).train()
        free.update({f"{task.name} head.{name}": p for name, p in head.named_parameters()})
        buffers.update({f"{task.name} head.{name}": value for name, value in _buffers(head).items()})
    optimizer = torch.optim.AdamW(
        free.values(), lr=recipe.learning_rate, betas=(0.9, 0.999), weight_decay=recipe.weight_decay, fused=True
    )
    generator = torch.Generator().manual_seed(seed)
    draw = backbone.preprocess.drawing(tasks, recipe, seed)
    losses = [backbone.loss(task, head) for task, head in zip(tasks, heads, strict=True)]
    done, before = resume(snapshot, free, buffers, optimizer, generator)
    started = time.perf_counter()
    model.train()
    on_step(done)
    for step in range(done, recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * (factor or schedule)(step, recipe)
        batch, labels = _to(device, *draw(step, generator))
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(1_000_003 * seed + step)  # of dropout, where there is some
            _backward(model, heads, losses, batch, labels, mixed and device.type == "cuda")
        torch.nn.utils.clip_grad_norm_(free.values(), recipe.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % (every or SNAPSHOT_STEPS) == 0 and step + 1 < recipe.steps:
            spent = before + time.perf_counter() - started
            save_snapshot(snapshot, step + 1, spent, free, buffers, optimizer, generator)
        on_step(step + 1)
    for head in heads:
        head.eval()
    return Trained(model.eval(), before + time.perf_counter() - started)


def schedule(step: int, recipe: Recipe) -> float:
    """Factor on the learning rate at a step from 0 on: linear warm-up, then a cosine to 0 at the last step."""
    return min(1.0, (step + 1) / recipe.warmup) * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))


def _trainable(backbone: Backbone, recipe: Recipe, seed: int) -> nn.Module:
    model = backbone.build()
    if isinstance(backbone, LayerLinearizedClip):
        return backbone.start(recipe)
    if recipe.rank is None or isinstance(backbone, LinearizedClip):  # whose parameters are the adapter's alone
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not name.startswith(recipe.frozen))
        return model
    from peft import LoraConfig

    config = LoraConfig(r=recipe.rank, lora_alpha=recipe.alpha, target_modules=list(recipe.targets))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return wrap(model, config)


def _buffers(module: nn.Module) -> dict[str, Tensor]:
    """What is saved of a module besides its parameters; nothing of one that has no parameters to learn."""
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    return {name: value for name, value in module.state_dict().items() if parameters and name not in parameters}


def _to(device: torch.device, batch: Batch, labels: list[Tensor]) -> tuple[Batch, list[Tensor]]:
    moved = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
    return moved, [answers.to(device, non_blocking=True) for answers in labels]


def _backward(
    model: nn.Module,
    heads: Sequence[nn.Module],
    losses: Sequence[Loss],
    batch: Batch,
    labels: list[Tensor],
    mixed: bool,
) -> None:
    """Forward all tasks' examples together, then the mean of the tasks' losses under their own heads; backward."""
    with torch.autocast(labels[0].device.type, torch.bfloat16, enabled=mixed):
        features = output_tensor(model(**batch)).float()
    found, start = [], 0
    for head, loss, answers in zip(heads, losses, labels, strict=True):
        rows = slice(start, start := start + len(answers))
        found.append(loss(head(features[rows], {name: value[rows] for name, value in batch.items()}), answers))
    torch.stack(found).mean().backward()


@torch.inference_mode()
def accuracy(model: nn.Module, backbone: Backbone, task: Task, head: nn.Module, split: str) -> tuple[int, int]:
    """(correct, total) of a model on one split."""
    correct = total = 0
    device = next(model.parameters()).device
    for batch, labels in backbone.preprocess.batches(task, split, None, EVALUATED, device):
        correct += int((predict(model, head, batch).argmax(-1) == labels).sum())
        total += len(labels)
    return correct, total


@torch.inference_mode()
def mean_loss(model: nn.Module, backbone: Backbone, task: Task, head: nn.Module, split: str) -> float:
    """The loss of a model on one split, batches counting by their examples: what to look at in dense prediction."""
    loss, total, examples = backbone.loss(task, head), 0.0, 0
    device = next(model.parameters()).device
    for batch, labels in backbone.preprocess.batches(task, split, None, SMALL, device):
        total += float(loss(predict(model, head, batch), labels)) * len(labels)
        examples += len(labels)
    return total / examples
