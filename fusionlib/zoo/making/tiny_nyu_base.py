"""Make the base of tiny-nyu: ``python -m fusionlib.zoo.making.tiny_nyu_base --out FOLDER``; a few minutes.

As ImageNet's labels are, the pretext is about the whole picture: how many objects of each kind are to be seen, whether
there is a window or a door, and which patterns floor and walls have. No pixel's truth is used, and no scene of a split.
The shipped weights were made by this script with its defaults.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

from fusionlib.zoo.files import hash_file, write_atomically
from fusionlib.zoo.making.scenes import CLASSES, OBJECTS, PATTERNS, Room, draw_room, render
from fusionlib.zoo.resnet import DilatedResNet, ResNetConfig
from fusionlib.zoo.scenes import MEAN, STD

FIRST_SEED = 1_000_000
QUESTIONS = (3,) * len(OBJECTS) + (2, 2) + (len(PATTERNS),) * 2  # answers of each question


@dataclass(frozen=True)
class Training:
    """Settings of the pretraining.

    Attributes:
        scenes: rendered, with one ray per pixel, and seen once per epoch, half of the time mirrored.
        checked: further scenes on which the answers are counted at the end, for the record only.
    """

    scenes: int = 2400
    checked: int = 200
    epochs: int = 8
    batch_size: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2


def answers(room: Room, label: Tensor) -> list[int]:
    """The right answer to every question about a room, of which ``label`` (H, W) can be seen."""
    seen = {kind: int((label == CLASSES.index(kind)).sum()) > 8 for kind in (*OBJECTS, "window")}
    counts = [min(2, room.counts[kind]) if seen[kind] else 0 for kind in OBJECTS]
    patterns = [PATTERNS.index(look.pattern) for look in room.walls[:2]]
    return [*counts, int(seen["window"]), int(bool((label < 0).any())), *patterns]


def make_examples(first: int, number: int) -> tuple[Tensor, Tensor]:
    """Pictures uint8 (n, 3, H, W) and answers (n, questions) of the scenes of these seeds."""
    images, truths = [], []
    for seed in range(first, first + number):
        room = draw_room(seed)
        picture = render(room, seed, smooth=False)
        images.append(torch.from_numpy(picture.image).permute(2, 0, 1))
        truths.append(answers(room, torch.from_numpy(picture.label)))
    return torch.stack(images), torch.tensor(truths)


def normalise(images: Tensor) -> Tensor:
    """uint8 to float32, as the suite does."""
    return (images.float() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def pretrain(
    model: DilatedResNet, examples: tuple[Tensor, Tensor], training: Training, seed: int
) -> tuple[nn.Linear, list[float]]:
    """Train in place, with a linear map of the mean feature for all questions; its losses by epoch."""
    images, truths = examples
    classifier = nn.Linear(model.config.dim, sum(QUESTIONS))
    parameters = [*model.parameters(), *classifier.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=training.learning_rate, weight_decay=training.weight_decay)
    generator = torch.Generator().manual_seed(seed)
    per_epoch = len(images) // training.batch_size
    steps, losses = per_epoch * training.epochs, []
    order = torch.arange(len(images))
    model.train()
    for step in range(steps):
        if step % per_epoch == 0:
            order = torch.randperm(len(images), generator=generator)
            losses.append(0.0)
        warm = min(1.0, (step + 1) / 50)
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / steps))
        rows = order[(step % per_epoch) * training.batch_size :][: training.batch_size]
        batch = normalise(images[rows])
        mirrored = torch.rand(len(rows), generator=generator) < 0.5
        batch = torch.where(mirrored[:, None, None, None], batch.flip(-1), batch)
        loss = _loss(classifier(model(batch).mean(dim=(-2, -1))), truths[rows])
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses[-1] += loss.item() / per_epoch
        if step % per_epoch == per_epoch - 1:
            print(f"epoch {len(losses)}: loss {losses[-1]:.3f}", file=sys.stderr, flush=True)
    model.eval()
    return classifier, losses


def _loss(scores: Tensor, truths: Tensor) -> Tensor:
    parts = zip(scores.split(QUESTIONS, dim=1), truths.T, strict=True)
    return torch.stack([nn.functional.cross_entropy(part, truth) for part, truth in parts]).mean()


@torch.inference_mode()
def right_answers(model: DilatedResNet, classifier: nn.Linear, examples: tuple[Tensor, Tensor]) -> list[float]:
    """Share of right answers to every question, in [0, 1]."""
    images, truths = examples
    scores = classifier(model(normalise(images)).mean(dim=(-2, -1))).split(QUESTIONS, dim=1)
    parts = zip(scores, truths.T, strict=True)
    return [float((part.argmax(1) == truth).float().mean()) for part, truth in parts]


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    from safetensors.torch import save_file

    parser = argparse.ArgumentParser(prog="python -m fusionlib.zoo.making.tiny_nyu_base", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--scenes", type=int, default=Training.scenes)
    parser.add_argument("--epochs", type=int, default=Training.epochs)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(given.seed)
    training = Training(scenes=given.scenes, epochs=given.epochs)
    started = time.perf_counter()
    examples = make_examples(FIRST_SEED, training.scenes)
    checked = make_examples(FIRST_SEED + training.scenes, training.checked)
    rendered = time.perf_counter() - started
    model = DilatedResNet(CONFIG)
    classifier, losses = pretrain(model, examples, training, given.seed)
    out: Path = given.out
    out.mkdir(parents=True, exist_ok=True)
    half = {name: v.half() if v.is_floating_point() else v for name, v in model.state_dict().items()}
    write_atomically(out / "model.safetensors", lambda temporary: save_file(half, temporary))
    write_atomically(
        out / "config.json", lambda temporary: temporary.write_text(CONFIG.to_json_string() + "\n", encoding="utf-8")
    )
    largest = [float(truth.bincount().max() / len(truth)) for truth in checked[1].T]
    provenance = {
        "script": "fusionlib.zoo.making.tiny_nyu_base",
        "training": asdict(training),
        "seed": given.seed,
        "losses": [round(loss, 4) for loss in losses],
        "right_answers": [round(share, 3) for share in right_answers(model, classifier, checked)],
        "most_frequent_answer": [round(share, 3) for share in largest],
        "seconds": {"rendering": round(rendered), "all": round(time.perf_counter() - started)},
        "files": {"model.safetensors": hash_file(out / "model.safetensors")},
        "packages": {name: version(name) for name in ("torch", "numpy", "safetensors")},
    }
    text = json.dumps(provenance, indent=1) + "\n"
    write_atomically(out / "provenance.json", lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return 0


CONFIG = ResNetConfig(blocks=(1, 1, 1, 1), width=16, output_stride=8)

if __name__ == "__main__":
    raise SystemExit(main())
