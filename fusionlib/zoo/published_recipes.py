"""How models of the published kinds are fine-tuned, as data: what is known of the published recipes, and the rest."""

from __future__ import annotations

import math
from dataclasses import replace

from fusionlib.core import ParameterError, suggest
from fusionlib.zoo.recipe import L_LORA, Recipe

# AdamW without decay is Adam; nothing is clipped
_ADAM = Recipe(steps=4000, batch_size=32, learning_rate=1e-5, weight_decay=0.0, clip=math.inf, frozen=())
_CLIP = replace(_ADAM, frozen=("visual_projection.",))
_CLIP_LORA = replace(_CLIP, steps=2000, rank=16)
_T5 = replace(_ADAM, steps=2000, learning_rate=5e-5)

# kind -> tuning -> recipe, and how often a task's training examples are seen where that decides the steps
PUBLISHED: dict[str, dict[str, tuple[Recipe, int | None]]] = {
    "clip": {"full": (_CLIP, None), "lora": (_CLIP_LORA, None), L_LORA: (_CLIP_LORA, None)},
    "gpt2": {"full": (replace(_ADAM, learning_rate=5e-5), 3)},
    "classifier": {"full": (replace(_ADAM, learning_rate=5e-5), 3)},
    "t5": {"full": (_T5, None), "lora": (replace(_T5, learning_rate=5e-4, rank=16, targets=("q", "v")), None)},
}


def published_recipe(kind: str, tuning: str, examples: int) -> Recipe:
    """The recipe of a tuning.

    Args:
        kind: of the backbone, a key of ``PUBLISHED``.
        tuning: "full", "lora" or "l-lora".
        examples: of the training split.

    Raises: ParameterError, if there is none.

    Source: FusionBench (Tang et al. 2024) for CLIP, full: Adam at 1e-5, 4000 steps of 32, the vision tower alone;
        CLIP, LoRA of rank 16 on queries and values: Adam at 1e-5, 2000 steps; GPT-2: 5e-5, 3 epochs, own heads;
        Flan-T5: LoRA of rank 16.
    Deviates: not published, and chosen here without a trial: a constant rate, no warm-up, no augmentation; LoRA's
        alpha of 32, no dropout in it, and its batches of 32; GPT-2's optimiser (Adam) and batches of 32; of Flan-T5
        everything else: Adam, 2000 steps of 32, 5e-5 for all weights, 5e-4 for LoRA on queries and values. Own
        classifiers, which were not published, are trained as GPT-2.
    """
    offered = PUBLISHED.get(kind, {})
    if tuning not in offered:
        raise ParameterError(
            f"there is no recipe for tuning={tuning!r} of a backbone of kind {kind!r}.{suggest(tuning, offered)}"
        )
    recipe, epochs = offered[tuning]
    return recipe if epochs is None else replace(recipe, steps=epochs * math.ceil(examples / recipe.batch_size))


def constant(step: int, recipe: Recipe) -> float:
    """Factor on the learning rate: always 1."""
    return 1.0
