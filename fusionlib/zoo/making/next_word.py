"""Next-word training of a small GPT-2."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fusionlib.core import NonFiniteError
from fusionlib.zoo.snapshots import resume, save_snapshot

SNAPSHOT_STEPS = 100

CONFIG: dict[str, Any] = {
    "vocab_size": 6144,
    "n_positions": 128,
    "n_embd": 128,
    "n_layer": 4,
    "n_head": 4,
    "activation_function": "gelu_pytorch_tanh",
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "use_cache": False,
}


@dataclass(frozen=True)
class Training:
    """Settings; the learning rate rises over ``warmup`` steps and falls along a cosine to a twentieth."""

    steps: int = 3000
    batch_size: int = 32
    length: int = 64
    learning_rate: float = 3e-3
    warmup: int = 100
    decay: float = 0.1


def build(seed: int) -> nn.Module:
    """A ``GPT2LMHeadModel`` of :data:`CONFIG` with weights drawn from this seed."""
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT2LMHeadModel(GPT2Config(**CONFIG))


class Ramp(Protocol):
    """Settings that say how the learning rate goes."""

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        ...

    @property
    def warmup(self) -> int:
        """Steps until the peak."""
        ...


def rate(step: int, training: Ramp) -> float:
    """Fraction of the peak learning rate at a step."""
    if step < training.warmup:
        return (step + 1) / training.warmup
    along = (step - training.warmup) / max(1, training.steps - training.warmup)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * along))


def train(
    model: nn.Module, windows: Tensor, training: Training, seed: int, snapshot: Path, say: Callable[[str], object]
) -> dict[str, float]:
    """Train ``model`` in place on windows (n, length), nearly every one once before any is seen again.

    Forward and backward run under bf16 autocast, the cross-entropy too: in float32 it costs a third of the time.
    Training goes on from ``snapshot`` if there is one, and leaves one every :data:`SNAPSHOT_STEPS` steps.

    Returns: the mean loss of the last hundred steps, and the seconds.
    Raises: NonFiniteError if the loss is not a number any more; CheckpointError if the snapshot can't be read.
    """
    free = dict(model.named_parameters())
    matrices = [p for p in free.values() if p.ndim > 1]
    vectors = [p for p in free.values() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": training.decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=training.learning_rate, betas=(0.9, 0.98))
    generator = torch.Generator().manual_seed(seed)
    done, before = resume(snapshot, free, {}, optimizer, generator)
    losses, started = [], time.monotonic()
    model.train()
    for step in range(done, training.steps):
        batch = windows[rows_of_step(len(windows), training.batch_size, seed, step)]
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate * rate(step, training)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=batch).logits[:, :-1]
            loss = nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]).bfloat16(), batch[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise NonFiniteError(f"The loss is {losses[-1]} at step {step}; no weights were written.")
        if (step + 1) % SNAPSHOT_STEPS == 0:
            seconds = before + time.monotonic() - started
            save_snapshot(snapshot, step + 1, seconds, free, {}, optimizer, generator)
            say(f"step {step + 1} of {training.steps}, loss {_recent(losses):.3f}, {seconds:.0f} s")
    return {"loss": _recent(losses), "seconds": before + time.monotonic() - started}


def rows_of_step(count: int, size: int, seed: int, step: int) -> Tensor:
    """Which windows a step reads: a new order in every epoch; what does not fill a batch is left out of it."""
    epoch, place = divmod(step, max(1, count // size))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(1_000_003 * seed + epoch))
    return order[place * size : (place + 1) * size]


def _recent(losses: list[float]) -> float:
    return sum(losses[-100:]) / max(1, len(losses[-100:]))
