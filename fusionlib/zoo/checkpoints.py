"""Fine-tunes on disk: saved with ``save_pretrained``, described in JSON, verified by checksum at every reading."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fusionlib.core import CheckpointError, StateDict
from fusionlib.zoo.adapter_merging import merge_adapter
from fusionlib.zoo.backbone import Backbone
from fusionlib.zoo.files import hash_file, hash_tensors, writing
from fusionlib.zoo.heads import HEADS, head_tensors, read_head_state
from fusionlib.zoo.job import Job
from fusionlib.zoo.l_lora import LinearizedClip
from fusionlib.zoo.weights import check_keys, like, read_weights

FACTS = "fusionlib.json"


@dataclass(frozen=True)
class Checkpoint:
    """A verified fine-tune: weights with adapters merged in, the facts that were written beside them, and its head.

    ``head`` has the tensors of the head that was trained along, None where heads are not trained.
    """

    state: StateDict
    facts: dict[str, Any]
    head: StateDict | None = None

    @property
    def identity(self) -> str:
        """Hash of the files it was read from."""
        return "".join(sorted(self.facts["files"].values()))


def save(job: Job, model: nn.Module, facts: dict[str, Any], heads: Mapping[str, nn.Module] | None = None) -> Path:
    """Write the fine-tune and move it into place in one step; returns its folder.

    Args:
        job: what it is.
        model: as the training loop returned it, a PEFT model for LoRA.
        facts: further entries of the JSON (seconds, validation counts).
        heads: task -> head that was trained along.

    Raises: CheckpointError, if it can't be written; the last snapshot is kept.
    """
    with writing(job.folder):
        _write(job, model, facts, heads)
    return job.folder


def _write(job: Job, model: nn.Module, facts: dict[str, Any], heads: Mapping[str, nn.Module] | None) -> None:
    from safetensors.torch import save_file

    building = job.partial / "finished"
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    options: dict[str, Any] = {} if job.recipe.rank is None else {"save_embedding_layers": False}
    model.save_pretrained(building, **options)  # type: ignore[operator]
    (building / "README.md").unlink(missing_ok=True)  # PEFT's empty form of a model card
    if heads:
        kept = [head_tensors(task, head) for task, head in heads.items()]
        save_file({name: value for tensors in kept for name, value in tensors.items()}, building / HEADS)
    written = {path.name: hash_file(path) for path in sorted(building.iterdir())}
    described = {
        **job.to_json(),
        "data_sha256": job.data_hash,
        "training_seed": job.training_seed,
        **facts,
        "versions": _versions(),
        "files": written,
    }
    (building / FACTS).write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    os.replace(building, job.folder)
    shutil.rmtree(job.partial, ignore_errors=True)


def load(job: Job, backbone: Backbone) -> Checkpoint:
    """Read a finished fine-tune.

    Raises:
        CheckpointError: a file is missing or its hash is not the one that was written down.
        KeyMismatch: its tensors are not those of the backbone.
    """
    facts = verify(job.folder)
    if isinstance(backbone, LinearizedClip):
        _check_start(job, facts, backbone)
        return Checkpoint(backbone.read(job.folder), facts)
    if job.recipe.rank is not None:
        return Checkpoint(merge_adapter(backbone, job.folder), facts)
    state = backbone.complete(read_weights(job.folder))
    check_keys(state, backbone.state, str(job.folder))
    head = read_head_state(job.folder / HEADS, job.label) if backbone.learns_heads else None
    return Checkpoint(like(state, backbone.state), facts, head)


def verify(folder: Path) -> dict[str, Any]:
    """The facts of a fine-tune after its files were compared with the hashes in them; else CheckpointError."""
    remedy = f"Delete the folder {folder}: the next load_suite or fusionlib.zoo.prepare makes this fine-tune again."
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        expected: dict[str, str] = facts["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / FACTS} can't be read ({error!r}). {remedy}") from error
    for name, sha256 in expected.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing; expected a file with SHA-256 {sha256}. {remedy}")
        found = hash_file(path)
        if found != sha256:
            raise CheckpointError(f"{path} is corrupt: expected SHA-256 {sha256}, found {found}. {remedy}")
    return facts


def _check_start(job: Job, facts: dict[str, Any], backbone: LinearizedClip) -> None:
    if facts.get("start_sha256") != hash_tensors(backbone.state):
        raise CheckpointError(
            f"the adapter in {job.folder} was trained around another start than this installation draws (another "
            "version of torch or peft may). Delete the folder: the next load_suite makes this fine-tune again."
        )


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {**{name: version(name) for name in ("fusionlib", "transformers", "peft")}, "torch": torch.__version__}
