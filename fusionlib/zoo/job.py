"""One fine-tune to be made: what determines it, and the name of the folder that will hold it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fusionlib.zoo.embedded import start_hash
from fusionlib.zoo.files import home
from fusionlib.zoo.recipe import JOINT, Recipe, get_recipe, training_seed
from fusionlib.zoo.task import embedded_task

# time of training on one example, as a multiple of tiny-clip's; measured on one core, and roughly right elsewhere
_COST = {"tiny-gpt2": 2, "tiny-t5": 4, "tiny-nyu": 6}


@dataclass(frozen=True)
class Job:
    """A fine-tune; what concerns its folder is of embedded backbones.

    Attributes:
        backbone: its name.
        tasks: one name, or several for the joint model.
        kind: a tuning, or "joint".
        seed: of the run, from 0 on.
        recipe: settings of the training.
    """

    backbone: str
    tasks: tuple[str, ...]
    kind: str
    seed: int
    recipe: Recipe

    @property
    def label(self) -> str:
        """What it is called in messages: the task, or "joint"."""
        return JOINT if self.kind == JOINT else self.tasks[0]

    @property
    def training_seed(self) -> int:
        """Seed handed to the training loop."""
        return training_seed(self.label, self.seed)

    @property
    def data_hash(self) -> str:
        """Hash of the training examples, in the order of the tasks."""
        hashes = [embedded_task(task).split("train").sha256 for task in self.tasks]
        return hashlib.sha256("".join(hashes).encode()).hexdigest()

    @property
    def name(self) -> str:
        """Name of its folder; its hash covers recipe, seed, training data and what it starts from."""
        described = {**self.to_json(), "data": self.data_hash, "start": start_hash(self.backbone)}
        digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:12]
        if self.kind == JOINT:
            return f"{JOINT}{len(self.tasks)}-seed{self.seed}-{digest}"
        return f"{self.label}-{self.kind}-seed{self.seed}-{digest}"

    @property
    def root(self) -> Path:
        """Folder of all fine-tunes of the backbone."""
        return home() / "checkpoints" / self.backbone

    @property
    def folder(self) -> Path:
        """Where the finished fine-tune is; it exists only when it is complete."""
        return self.root / self.name

    @property
    def partial(self) -> Path:
        """Where snapshots and the unfinished folder are while it is being made."""
        return self.root / ".partial" / self.name

    @property
    def lock(self) -> Path:
        """File that is locked by the process that makes it."""
        return self.root / ".locks" / f"{self.name}.lock"

    @property
    def work(self) -> int:
        """How long it takes, in examples that tiny-clip would read: for the time estimate and the order of jobs."""
        examples = self.recipe.steps * self.recipe.batch_size * len(self.tasks)
        return round(examples * _COST.get(self.backbone, 1))

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Job:
        """The inverse of ``to_json``."""
        recipe: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values["recipe"].items()}
        return cls(**{**values, "tasks": tuple(values["tasks"]), "recipe": Recipe(**recipe)})


def plan(backbone: str, tasks: Sequence[str], tuning: str, seed: int, multitask: bool) -> list[Job]:
    """All fine-tunes of a suite, the joint one first because it takes longest; whether made yet or not."""
    jobs = [joint_job(backbone, tasks, seed)] if multitask else []
    if tuning != "none":
        jobs += [Job(backbone, (task,), tuning, seed, _recipe(tuning, backbone, (task,))) for task in tasks]
    return jobs


def _recipe(kind: str, backbone: str, tasks: Sequence[str]) -> Recipe:
    return get_recipe(kind, backbone, sum(embedded_task(task).num_examples("train") for task in tasks))


def joint_job(backbone: str, tasks: Sequence[str], seed: int) -> Job:
    """The model trained on all of the tasks at once; all of its encoder is trained, whatever the suite's tuning."""
    return Job(backbone, tuple(tasks), JOINT, seed, _recipe(JOINT, backbone, tasks))
