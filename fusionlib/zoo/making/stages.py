"""The three stages of pretraining, as data and as code."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fusionlib.core import NonFiniteError
from fusionlib.zoo.making.batches import Batches, Mix

CONFIG: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_channels": 3,
    "image_size": 32,
    "patch_size": 8,
    "projection_dim": 384,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "initializer_factor": 1.0,
}
LARGEST_SCALE = 100.0


@dataclass(frozen=True)
class Stage:
    """Settings of one stage.

    Attributes:
        steps: optimiser steps.
        batch_size: pictures per step.
        learning_rate: peak; it goes to 0 along a cosine.
        warmup: steps up to the peak.
        decay: weight decay, on matrices only.
        scale: factor on the cosines at the start; it is learnt.
        mix: the pictures.
        drawn: 0 trains everything on fresh batches; else the tower is locked, the projection drawn anew and
            trained on the features of this many stored batches of 128.
    """

    steps: int
    batch_size: int
    learning_rate: float
    warmup: int
    decay: float
    scale: float
    mix: Mix
    drawn: int = 0


STAGES = {
    "1a": Stage(2000, 128, 1.2e-3, 100, 0.05, 20.0,
                Mix((0.55, 0.15, 0.09, 0.07, 0.09, 0.02, 0.03), (20, 25, 40, 10, 6), photos=False)),
    "1b": Stage(1500, 128, 1e-3, 100, 0.05, 30.0,
                Mix((0.48, 0.08, 0.08, 0.12, 0.14, 0.04, 0.06), (110, 500, None, 64, 100), photos=True)),
    "2": Stage(120, 256, 2e-3, 0, 0.0, 30.0,
               Mix((0.50, 0.40, 0.01, 0.025, 0.025, 0.015, 0.025), (1, 1, 1, 1, 1), photos=True), drawn=60),
}  # fmt: skip


def build(seed: int) -> nn.Module:
    """A ``CLIPVisionModelWithProjection`` of :data:`CONFIG` with weights drawn from this seed."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CLIPVisionModelWithProjection(CLIPVisionConfig(**CONFIG))


def bank_loss(embeddings: Tensor, rows: Tensor, bank: Tensor, same: Tensor, scale: Tensor) -> Tensor:
    """Cross-entropy of each picture's caption among all captions, other captions of its concept left out.

    Args:
        embeddings: (n, dim), any length.
        rows: (n,) the right row of the bank.
        bank: (concepts, dim), length 1.
        same: (concepts, concepts) booleans from :func:`fusionlib.zoo.making.captions.same_concept`.
        scale: factor on the cosines.
    """
    logits = scale * nn.functional.normalize(embeddings, dim=-1) @ bank.T
    return nn.functional.cross_entropy(logits.masked_fill(same[rows], -torch.inf), rows)


def rate(step: int, steps: int, warmup: int) -> float:
    """Fraction of the peak learning rate at a step: linear warm-up, then a cosine to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def train_stage(
    name: str, model: nn.Module, batches: Batches, bank: Tensor, same: Tensor, *,
    seed: int, steps_scale: float, say: Callable[[str], object],
) -> tuple[float, float]:  # fmt: skip
    """Run one stage on ``model``, in place.

    Args:
        name: a key of :data:`STAGES`.
        model: as the stage before left it.
        batches: of the stage's mix.
        bank: (concepts, 3, dim) text embeddings, one per caption.
        same: see :func:`bank_loss`.
        seed: of the choice of captions and of a projection that is drawn anew.
        steps_scale: factor on the number of steps.
        say: is given a line of progress now and then.

    Returns:
        The learnt scale, and the mean loss of the last tenth of the steps.

    Raises:
        NonFiniteError: the loss is not a number any more.
    """
    stage = STAGES[name]
    generator = torch.Generator().manual_seed(seed + 1)
    next_features = _stored(model, batches, stage, generator, steps_scale) if stage.drawn else None
    parameters = [p for n, p in model.named_parameters() if next_features is None or n.startswith("visual_projection")]
    log_scale = nn.Parameter(torch.tensor(math.log(stage.scale)))
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": stage.decay},
        {"params": [p for p in parameters if p.ndim < 2] + [log_scale], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=stage.learning_rate, betas=(0.9, 0.98))
    steps, warmup = (max(1, round(count * steps_scale)) for count in (stage.steps, stage.warmup))
    losses: list[float] = []
    started = time.monotonic()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = stage.learning_rate * rate(step, steps, warmup if stage.warmup else 0)
        template = int(torch.randint(bank.shape[1], (), generator=generator))
        if next_features is None:
            pictures, rows = batches.draw()
            embeddings = model(pixel_values=pictures).image_embeds
        else:
            features, rows = next_features()
            embeddings = model.get_submodule("visual_projection")(features)
        loss = bank_loss(embeddings, rows, bank[:, template], same, log_scale.exp().clamp(max=LARGEST_SCALE))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([*parameters, log_scale], 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise NonFiniteError(f"The loss of stage {name} is {losses[-1]} at step {step}; no weights were written.")
        if (step + 1) % 100 == 0 or step + 1 == steps:
            recent, seconds = sum(losses[-100:]) / len(losses[-100:]), time.monotonic() - started
            say(f"stage {name}: step {step + 1} of {steps}, loss {recent:.3f}, {seconds:.0f} s")
    tail = losses[-max(1, steps // 10) :]
    return float(log_scale.detach().exp().clamp(max=LARGEST_SCALE)), sum(tail) / len(tail)


def _stored(
    model: nn.Module, batches: Batches, stage: Stage, generator: torch.Generator, steps_scale: float
) -> Callable[[], tuple[Tensor, Tensor]]:
    """Draw the projection anew, and return a function that draws batches of stored features."""
    projection = model.get_parameter("visual_projection.weight")
    with torch.no_grad():
        projection.normal_(0, projection.shape[1] ** -0.5, generator=generator)
        tower = model.get_submodule("vision_model").eval()
        drawn = [batches.draw() for _ in range(max(1, round(stage.drawn * steps_scale)))]
        features = torch.cat([tower(pixel_values=pictures).pooler_output for pictures, _ in drawn])
    rows = torch.cat([rows for _, rows in drawn])

    def draw() -> tuple[Tensor, Tensor]:
        index = torch.randint(len(rows), (stage.batch_size,), generator=generator)
        return features[index], rows[index]

    return draw
