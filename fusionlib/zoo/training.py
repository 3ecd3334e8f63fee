"""``train``: one fine-tune of any suite that a file of parameters can name, by the published recipe of its kind."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

from fusionlib.core import ParameterError, UnknownName, suggest
from fusionlib.zoo import names
from fusionlib.zoo.backbone import Backbone, ClipBackbone
from fusionlib.zoo.classifiers import ClassifierBackbone
from fusionlib.zoo.files import file_name, home
from fusionlib.zoo.finetune_folder import Making
from fusionlib.zoo.gpt2 import Gpt2Backbone
from fusionlib.zoo.hub import loading
from fusionlib.zoo.job import Job
from fusionlib.zoo.layer_lora import layer_linearized
from fusionlib.zoo.preparing import prepare
from fusionlib.zoo.progress import Progress
from fusionlib.zoo.published_recipes import constant, published_recipe
from fusionlib.zoo.recipe import L_LORA, Recipe, get_recipe
from fusionlib.zoo.start import read_start, read_tasks
from fusionlib.zoo.t5 import T5Backbone
from fusionlib.zoo.task_entries import unpack

NYUV2 = "resnet50-nyuv2"
_KINDS = (
    (ClipBackbone, "clip"),
    (Gpt2Backbone, "gpt2"),
    (T5Backbone, "t5"),
    (ClassifierBackbone, "classifier"),
)


def train(
    backbone: str | PathLike[str],
    tasks: str | Iterable[str] | Mapping[str, Any],
    task: str,
    *,
    tuning: str = "full",
    seed: int = 0,
    out: str | PathLike[str] | None = None,
    device: str = "auto",
    pretrained: str | PathLike[str] | None = None,
    progress: bool = True,
) -> Path:
    """Fine-tune a backbone on one task; called again it goes on from the last snapshot.

    The embedded fine-tunes are those that ``prepare`` makes. Others load with ``load_suite(..., checkpoints={task:
    folder})``: whole weights, a PEFT adapter, or a linearised one; the head beside them where heads are learned.

    Args:
        backbone: as ``load_suite`` takes it; or "resnet50-nyuv2", whose fine-tunes load with ``nyuv2_suite``.
        tasks: as ``load_suite`` takes them; of "resnet50-nyuv2", task -> folder of the prepared NYUv2.
        task: one of them; its train split is trained on, and its val is not.
        tuning: "full", "lora" or "l-lora".
        seed: of the batches, new heads and LoRA's initial weights, 0 or greater.
        out: folder to make; ``home()/checkpoints/<backbone>/<task>-<tuning>-seed<seed>`` if None.
        device: "auto", "cpu" or "cuda"; on CUDA the model computes in bfloat16, weights stay float32.
        pretrained: of "resnet50-nyuv2" alone, the file of torchvision's ResNet-50 weights.
        progress: show steps and the time left on stderr.
    Returns: the folder. If it is there, nothing is done.
    Raises: UnknownName, ParameterError, CheckpointError, KeyMismatch.
    Source, Deviates: see ``published_recipes.published_recipe``.
    """
    where = names.resolve_device(device)
    names.check_seed(seed)
    if names.check_tuning(tuning) == "none":
        raise ParameterError('tuning="none" trains nothing. Give tuning="full", "lora" or "l-lora".')
    known = _known(backbone, tasks)
    if task not in known:
        raise UnknownName(f"there is no task {task!r} to train on.{suggest(str(task), known)}")
    if backbone == NYUV2:
        return _nyuv2(task, tasks, tuning, seed, out, device, pretrained, progress)
    chosen, _, heads = unpack({task: tasks[task]} if isinstance(tasks, Mapping) else (task,))
    asked = loading.asked(backbone, chosen)
    others = () if asked.names else read_tasks(chosen)[0]
    embedded = backbone in names.EMBEDDED_BACKBONES
    if embedded and all(each.embedded for each in others) and not asked.names:
        return _embedded(str(backbone), task, tuning, seed, out, progress)
    if embedded and tuning == L_LORA:
        raise ParameterError(f'tuning="l-lora" of {backbone} is for the embedded tasks alone; use "full" or "lora".')
    _, base, (target,) = read_start(backbone, others, asked, tuning, "none", progress=progress)
    if "train" not in target.splits:
        raise ParameterError(
            f"task {task!r} has no train split, only {', '.join(target.splits)}: add files or a folder named train."
        )
    recipe = _recipe(base, str(backbone), tuning, target.num_examples("train"))
    if tuning == L_LORA and isinstance(base, ClipBackbone):
        base = layer_linearized(base)
    head = base.head(target, heads[task]) if heads and task in heads else base.start_head(target, seed)
    job = Job(base.name, (task,), tuning, seed, recipe)
    folder = Path(out).expanduser().absolute() if out else _default(base.name, f"{file_name(task)}-{tuning}-seed{seed}")
    return Making(base, target, head, job, None if embedded else constant).make(folder, where, progress=progress)


def _known(backbone: str | PathLike[str], tasks: str | Iterable[str] | Mapping[str, Any]) -> tuple[str, ...]:
    if isinstance(tasks, Mapping):
        return tuple(tasks)
    found = loading.asked(backbone, tasks)
    return found.names or names.resolve_tasks(tasks)[0]


def _recipe(base: Backbone, name: str, tuning: str, examples: int) -> Recipe:
    if name in names.EMBEDDED_BACKBONES:
        return get_recipe(tuning, name, examples)
    kind = next(kind for made, kind in _KINDS if isinstance(base, made))
    return published_recipe(kind, tuning, examples)


def _default(backbone: str, name: str) -> Path:
    return home() / "checkpoints" / re.sub(r"[^A-Za-z0-9._-]+", "_", backbone).strip("_.")[-100:] / name


def _embedded(backbone: str, task: str, tuning: str, seed: int, out: Any, progress: bool) -> Path:
    """The embedded fine-tune where ``load_suite`` looks for it, or a copy of it."""
    folder = prepare(backbone, [task], tuning, seed, progress=progress)[0]
    if out is None:
        return folder
    copy = Path(out).expanduser().absolute()
    if not copy.exists():
        building = copy.with_name(f".{copy.name}.{os.getpid()}")
        shutil.copytree(folder, building)
        os.replace(building, copy)
    return copy


def _nyuv2(
    task: str, tasks: Any, tuning: str, seed: int, out: Any, device: str, pretrained: Any, progress: bool
) -> Path:
    """By ``train_nyuv2``, with a tenth of the training pictures held out."""
    if not isinstance(tasks, Mapping):
        raise ParameterError(f"tasks of {NYUV2} need their data: tasks={{{task!r}: folder of the prepared NYUv2}}.")
    if pretrained is None:
        raise ParameterError(f"{NYUV2} starts from torchvision's ResNet-50: give its file as pretrained=.")
    if tuning != "full":
        raise ParameterError(f"there is no recipe for tuning={tuning!r} of {NYUV2}.{suggest(tuning, ['full'])}")
    from fusionlib.zoo.nyuv2 import nyuv2_tasks
    from fusionlib.zoo.nyuv2_training import RECIPE, train_nyuv2

    data: Any = unpack({task: tasks[task]}).tasks
    held_out = max(1, nyuv2_tasks(data[task])[0].num_examples("train") // 10)
    folder = Path(out).expanduser().absolute() if out else _default(NYUV2, f"{file_name(task)}-full-seed{seed}")
    shown: list[tuple[Progress, Job]] = []

    def on_step(done: int, steps: int) -> None:
        if not shown:  # how many steps there are is known now
            job = Job(NYUV2, (task,), "full", seed, replace(RECIPE, steps=steps))
            shown.append((Progress([job], enabled=progress), job))
        display, job = shown[0]
        display.step(job, done)

    try:
        return train_nyuv2(
            task, data[task], folder, pretrained, validation=held_out, seed=seed, device=device, on_step=on_step
        )
    finally:
        for display, _ in shown:
            display.close()
