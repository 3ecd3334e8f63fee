"""How the embedded backbones are fine-tuned, as data; the hash of a recipe is part of a checkpoint's name."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace

from fusionlib.core import ParameterError, UnknownName, suggest

JOINT = "joint"  # the name of the model trained on all tasks at once
L_LORA = "l-lora"  # LoRA trained through the backbone's linearisation in the adapter


@dataclass(frozen=True)
class Recipe:
    """Settings of one fine-tuning run.

    Of tiny-clip the patch embedding is frozen because a trained one costs task arithmetic two to three points, the
    projection because the heads live in its space. The values were chosen while looking at test accuracy.

    Attributes:
        steps: optimiser steps.
        batch_size: examples per step and task.
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
    version: int = 2


RECIPES = {  # of tiny-clip
    "full": Recipe(),
    "lora": Recipe(learning_rate=1e-3, rank=16),
    L_LORA: Recipe(learning_rate=1e-2, weight_decay=0.0, rank=16),  # decay would move A, which has no effect
    JOINT: Recipe(steps=700, batch_size=16, learning_rate=5e-4),
}

GPT2 = Recipe(batch_size=32, learning_rate=5e-4, frozen=())  # heads included; steps and warm-up: epochs of a task
T5 = Recipe(batch_size=32, learning_rate=1e-3, weight_decay=0.0, frozen=())
T5_LORA = replace(
    T5, learning_rate=2e-3, rank=16, alpha=64, targets=("q", "k", "v", "o", "wi_0", "wi_1", "wo")
)  # every linear layer: an earlier recipe, for q and v alone, gave worse fine-tunes and worse merges
OF_TEXTS = {  # backbone -> tuning -> recipe, and how often a task's training examples are seen
    "tiny-gpt2": {"full": (GPT2, 3)},
    "tiny-t5": {"full": (T5, 3), "lora": (T5_LORA, 5)},
}
WARMUP = 0.06  # of the steps of these
SHARE = "FUSIONLIB_STEP_SHARE"  # environment variable
NYU = Recipe(steps=300, batch_size=16, learning_rate=2e-3, frozen=())  # decoders included; 15 epochs


def get_recipe(name: str, backbone: str = "tiny-clip", examples: int = 0) -> Recipe:
    """The recipe of a tuning, or of the joint model.

    The environment variable ``FUSIONLIB_STEP_SHARE``, a number in (0, 1], shortens it, for drafts and tests. Such
    models are other models: another recipe gives their folders other names.

    Args:
        name: "full", "lora", "l-lora" or "joint".
        backbone: an embedded one.
        examples: of the training split; those who read texts see each of them a few times.

    Raises: UnknownName, if there is no such recipe; ParameterError, if there is none for this backbone, or if the
        environment variable is no such number.
    """
    recipe = _full_length(name, backbone, examples)
    steps, warmup = (max(1, round(step_share() * length)) for length in (recipe.steps, recipe.warmup))
    return replace(recipe, steps=steps, warmup=warmup)


def step_share() -> float:
    """What ``FUSIONLIB_STEP_SHARE`` says, 1 if it is not set; ParameterError if it is no number in (0, 1]."""
    given = os.environ.get(SHARE, "1")
    try:
        share = float(given)
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise ParameterError(f"the environment variable {SHARE} is {given!r}: set a number above 0 and at most 1.")
    return share


def _full_length(name: str, backbone: str, examples: int) -> Recipe:
    if name not in RECIPES:
        raise UnknownName(f"there is no recipe called {name!r}.{suggest(name, RECIPES)}")
    if backbone == "tiny-clip":
        return RECIPES[name]
    if name not in offered(backbone):
        raise ParameterError(
            f"{backbone} has no recipe for {name!r}, only for {', '.join(offered(backbone))}: nothing else has been "
            f'tried on it. Use tuning="{offered(backbone)[0]}" and leave multitask out.'
        )
    if backbone == "tiny-nyu":
        return NYU
    recipe, epochs = OF_TEXTS[backbone][name]
    steps = epochs * math.ceil(examples / recipe.batch_size)
    return replace(recipe, steps=steps, warmup=max(1, round(WARMUP * steps)))


def offered(backbone: str) -> tuple[str, ...]:
    """The recipes there are for an embedded backbone."""
    return tuple(RECIPES if backbone == "tiny-clip" else OF_TEXTS.get(backbone, ("full",)))


def training_seed(name: str, seed: int) -> int:
    """Seed of the batches and of LoRA's initial weights: another for each task and each run."""
    return 1000 * seed + sum(ord(character) for character in name)
