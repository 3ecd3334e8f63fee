"""Training of a small T5 on exercises."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fusionlib.core import NonFiniteError
from fusionlib.zoo.making.exercises import Exercise, Pair
from fusionlib.zoo.making.next_word import SNAPSHOT_STEPS, rate
from fusionlib.zoo.snapshots import resume, save_snapshot

CONFIG: dict[str, Any] = {
    "vocab_size": 6144,
    "d_model": 128,
    "d_kv": 32,
    "d_ff": 256,
    "num_heads": 4,
    "num_layers": 3,
    "num_decoder_layers": 3,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 64,
    "feed_forward_proj": "gated-gelu",
    "dropout_rate": 0.0,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
    "use_cache": False,
}
IGNORED = -100  # in labels: no answer is asked for here


@dataclass(frozen=True)
class Training:
    """Settings; the learning rate rises over ``warmup`` steps and falls along a cosine to a twentieth.

    The rate is multiplied by each tensor's root mean square at the start, clamped to [0.01, 1], as Adafactor does:
    T5's embeddings start a hundred times as large as its queries, and no single rate suits both.
    """

    steps: int = 900
    learning_rate: float = 1e-2
    warmup: int = 100


def build(seed: int, embeddings: Tensor | None = None) -> nn.Module:
    """A ``T5ForConditionalGeneration`` of :data:`CONFIG` with weights drawn from this seed.

    Args:
        seed: of the weights.
        embeddings: (vocabulary, width) to take instead of drawn ones, brought to a root mean square of 1, T5's own.
    """
    from transformers import T5Config, T5ForConditionalGeneration

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = T5ForConditionalGeneration(T5Config(**CONFIG))
    if embeddings is not None:
        model.shared.weight.data.copy_(embeddings / embeddings.square().mean().sqrt())
    return model


def batch_of(pairs: Sequence[Pair]) -> dict[str, Tensor]:
    """Right-padded ``input_ids``, ``attention_mask`` and ``labels``, int64 (B, L) and (B, T)."""
    sources, answers = ([torch.tensor(row) for row in rows] for rows in zip(*pairs, strict=True))
    ids = nn.utils.rnn.pad_sequence(sources, batch_first=True)
    lengths = torch.tensor([len(row) for row in sources])
    labels = nn.utils.rnn.pad_sequence(answers, batch_first=True, padding_value=IGNORED)
    return {
        "input_ids": ids,
        "attention_mask": (torch.arange(ids.shape[1]) < lengths[:, None]).long(),
        "labels": labels,
    }


def draw(exercises: dict[str, Exercise], seed: int, step: int) -> tuple[str, dict[str, Tensor]]:
    """The exercise of a step and its batch; they depend on the seed and the step alone."""
    rng = random.Random(f"{seed} {step}")
    (name,) = rng.choices(list(exercises), [exercise.share for exercise in exercises.values()])
    return name, batch_of([exercises[name].draw(rng) for _ in range(exercises[name].batch_size)])


def train(
    model: nn.Module,
    exercises: dict[str, Exercise],
    training: Training,
    seed: int,
    snapshot: Path,
    say: Callable[[str], object],
) -> dict[str, Any]:
    """Train ``model`` in place; forward and backward run under bf16 autocast.

    Training goes on from ``snapshot`` if there is one, and leaves one every ``SNAPSHOT_STEPS`` steps.

    Returns: the mean loss of the last twenty batches of every exercise, and the seconds.
    Raises: NonFiniteError if the loss is not a number any more; CheckpointError if the snapshot can't be read.
    """
    free = dict(model.named_parameters())
    groups = [{"params": [p], "factor": float(p.detach().square().mean().sqrt().clamp(0.01, 1))} for p in free.values()]
    optimizer = torch.optim.AdamW(groups, lr=training.learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed)
    done, before = resume(snapshot, free, {}, optimizer, generator)
    losses: dict[str, list[float]] = {name: [] for name in exercises}
    started = time.monotonic()
    model.train()
    for step in range(done, training.steps):
        name, batch = draw(exercises, seed, step)
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate * rate(step, training) * group["factor"]
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(**{**batch, "labels": None}, decoder_input_ids=shifted(batch["labels"])).logits
            loss = nn.functional.cross_entropy(
                logits.flatten(0, 1).bfloat16(), batch["labels"].flatten(), ignore_index=IGNORED
            )
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses[name].append(float(loss.detach()))
        if not math.isfinite(losses[name][-1]):
            raise NonFiniteError(f"The loss is {losses[name][-1]} at step {step}; no weights were written.")
        if (step + 1) % SNAPSHOT_STEPS == 0:
            seconds = before + time.monotonic() - started
            save_snapshot(snapshot, step + 1, seconds, free, {}, optimizer, generator)
            now = ", ".join(f"{key} {value:.2f}" for key, value in _recent(losses).items())
            say(f"step {step + 1} of {training.steps}, {now}, {seconds:.0f} s")
    return {"loss": _recent(losses), "seconds": before + time.monotonic() - started}


def shifted(labels: Tensor) -> Tensor:
    """What the decoder reads, so that every answer token is guessed from those before it: int64 (B, T)."""
    start = labels.new_full((len(labels), 1), CONFIG["decoder_start_token_id"])
    return torch.cat([start, labels[:, :-1].clamp(min=0)], dim=1)


def _recent(losses: dict[str, list[float]]) -> dict[str, float]:
    return {name: sum(found[-20:]) / len(found[-20:]) for name, found in losses.items() if found}
