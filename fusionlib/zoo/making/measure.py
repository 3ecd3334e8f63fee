"""Zero-shot accuracy of a base model on the pack's test sets."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from fusionlib.zoo.making.packed import read_split

TASKS = ("mnist", "fashion", "animals", "optdigits", "landsat", "letters", "textures", "synthdigits")
SHIPPED = {  # what the first implementation of the recipe reached
    "mnist": 0.602,
    "fashion": 0.415,
    "animals": 0.521,
    "optdigits": 0.3886,
    "landsat": 0.667,
    "letters": 0.401,
    "textures": 0.5637,
    "synthdigits": 0.269,
}


def zero_shot(model: nn.Module, pack: Path, *, split: str = "test") -> dict[str, float]:
    """Fraction of each task's pictures whose embedding is nearest, by cosine, to the right class's head.

    Args:
        model: a ``CLIPVisionModelWithProjection``; left in evaluation mode.
        pack: folder with the Parquet files and ``heads.safetensors``.
        split: of the pack.
    """
    from safetensors.torch import load_file

    heads = load_file(pack / "heads.safetensors")
    model.eval()
    accuracy = {}
    for task in TASKS:
        pictures, labels = read_split(pack, task, split)
        correct = 0
        with torch.inference_mode():
            for start in range(0, len(pictures), 256):
                batch = torch.from_numpy(pictures[start : start + 256]).permute(0, 3, 1, 2).float()
                embeddings = model(pixel_values=batch / 127.5 - 1).image_embeds
                guesses = (embeddings @ heads[task].T).argmax(dim=1)
                correct += int((guesses == torch.from_numpy(labels[start : start + 256])).sum())
        accuracy[task] = correct / len(pictures)
    return accuracy


def report(accuracy: dict[str, float]) -> str:
    """The accuracies beside those of the shipped base, one task a line, then the means."""
    lines = [f"{'task':<12} {'here':>6} {'shipped':>8}"]
    lines += [f"{task:<12} {accuracy[task]:6.3f} {SHIPPED[task]:8.3f}" for task in TASKS]
    mean, shipped = (sum(values.values()) / len(TASKS) for values in (accuracy, SHIPPED))
    return "\n".join([*lines, f"{'mean':<12} {mean:6.3f} {shipped:8.3f}"])
