"""The folder of one fine-tune that is not embedded: what determines it, making it, and knowing it again."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fusionlib.core import ParameterError
from fusionlib.zoo.backbone import Backbone
from fusionlib.zoo.checkpoints import FACTS
from fusionlib.zoo.classifiers import ClassifierHead, whole
from fusionlib.zoo.files import check_writable, hash_file, hash_tensors, writing
from fusionlib.zoo.finetune import accuracy, finetune, mean_loss
from fusionlib.zoo.folders import silent_transformers
from fusionlib.zoo.heads import HEADS, head_tensors
from fusionlib.zoo.job import Job
from fusionlib.zoo.layer_lora import LayerLinearizedClip, save_linearized
from fusionlib.zoo.progress import Progress
from fusionlib.zoo.recipe import Recipe
from fusionlib.zoo.task import Task

SNAPSHOT_STEPS = 200  # of models that may be large: a snapshot is three times the size of what is trained


@dataclass(frozen=True)
class Making:
    """One fine-tune, from what it starts with to its folder.

    Attributes:
        base: the pretrained model.
        task: it is trained on.
        head: where it starts; trained along if it has parameters.
        job: names, seed and recipe.
        factor: on the learning rate, see ``finetune``.
    """

    base: Backbone
    task: Task
    head: nn.Module
    job: Job
    factor: Callable[[int, Recipe], float] | None

    @property
    def described(self) -> dict[str, Any]:
        """All that determines the result."""
        job, split = self.job, self.task.split("train")
        recipe = {key: None if value == math.inf else value for key, value in asdict(job.recipe).items()}
        rows = hashlib.sha256(repr(split.rows).encode()).hexdigest()
        facts = {
            "backbone": job.backbone,
            "task": self.task.name,
            "tuning": job.kind,
            "seed": job.seed,
            "recipe": recipe,
            "data_sha256": hashlib.sha256(f"{split.sha256} {rows} {self.base.preprocess}".encode()).hexdigest(),
            "start_sha256": hash_tensors(self.base.state),
            "head_sha256": hash_tensors(self.head.state_dict()),
        }
        return json.loads(json.dumps(facts))  # lists for tuples, as they are read back

    def make(self, folder: Path, device: torch.device, *, progress: bool) -> Path:
        """Train, unless the folder is there or another process is making it; then it is waited for.

        Raises: ParameterError, if the folder holds something else; CheckpointError, if the snapshot can't be read.
        """
        from filelock import FileLock

        described = self.described  # before training, which changes the head
        if folder.exists():
            _check_same(folder, described)
            return folder
        digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:12]
        partial = folder.parent / ".partial" / f"{folder.name}-{digest}"  # where no other training left a snapshot
        check_writable(partial)
        with FileLock(partial.with_name(f"{partial.name}.lock")):
            if folder.exists():
                _check_same(folder, described)
            else:
                self._train(folder, partial, described, device, progress)
            shutil.rmtree(partial, ignore_errors=True)
        return folder

    def _train(
        self, folder: Path, partial: Path, described: dict[str, Any], device: torch.device, progress: bool
    ) -> None:
        job, display = self.job, Progress([self.job], enabled=progress)
        try:
            trained = finetune(
                self.base,
                [self.task],
                [self.head],
                job.recipe,
                job.training_seed,
                partial / "snapshot.safetensors",
                lambda step: display.step(job, step),
                device,
                self.factor,
                SNAPSHOT_STEPS,
                mixed=True,
            )
            display.done(job)
        except KeyboardInterrupt:
            display.say("Interrupted. The last snapshot is kept: the same call goes on from there.")
            raise
        finally:
            display.close()
        judge = mean_loss if self.task.metric == "spearman" else accuracy  # where numbers are learned as answers
        judged = judge(trained.model, self.base, self.task, self.head, "val")
        facts = {**described, "train_seconds": round(trained.seconds, 2), "validation": {self.task.name: judged}}
        finished = partial / "finished"
        with writing(folder):
            _save(finished, trained.model.cpu(), self.base, {self.task.name: self.head.cpu()}, facts)
            os.replace(finished, folder)


def _check_same(folder: Path, described: Mapping[str, Any]) -> None:
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ParameterError(
            f"{folder} is there and is no fine-tune that was made here ({error}). Give another folder."
        ) from error
    odd = [key for key, value in described.items() if facts.get(key) != value]
    if odd:
        raise ParameterError(
            f"{folder} is there and holds another fine-tune: it differs in {', '.join(odd)}. Delete it, or give "
            "another folder."
        )


def _save(folder: Path, model: Any, base: Backbone, heads: Mapping[str, nn.Module], facts: Mapping[str, Any]) -> None:
    from safetensors.torch import save_file

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    classifier = [head for head in heads.values() if isinstance(head, ClassifierHead)]
    with silent_transformers():
        if isinstance(base, LayerLinearizedClip):
            save_linearized(model, folder)
        elif classifier:
            whole(model, classifier[0]).save_pretrained(folder)
        else:
            options = {"save_embedding_layers": False} if hasattr(model, "peft_config") else {}
            model.save_pretrained(folder, **options)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty form of a model card
    if base.learns_heads and not classifier:
        save_file({n: v for task, head in heads.items() for n, v in head_tensors(task, head).items()}, folder / HEADS)
    files = {path.name: hash_file(path) for path in sorted(folder.iterdir())}
    (folder / FACTS).write_text(json.dumps({**facts, "files": files}, indent=1) + "\n", encoding="utf-8")
