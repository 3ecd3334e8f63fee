"""Fine-tunes of ResNet-50 on NYUv2 by the published recipe, and the suite that they make. For a GPU."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fusionlib.core import CheckpointError, ParameterError, suggest
from fusionlib.zoo import names
from fusionlib.zoo.dense import DenseBackbone, resnet50_state
from fusionlib.zoo.files import hash_file, write_atomically
from fusionlib.zoo.finetune import finetune
from fusionlib.zoo.heads import head_tensors
from fusionlib.zoo.nyuv2 import SIZE, nyuv2_tasks
from fusionlib.zoo.recipe import Recipe
from fusionlib.zoo.resnet import DilatedResNet, ResNetConfig
from fusionlib.zoo.scenes import Scenes
from fusionlib.zoo.suite import fingerprint_of
from fusionlib.zoo.suite_types import Suite, SuiteSpec
from fusionlib.zoo.task import Task

EPOCHS = 40
HALVED = 10  # epochs after which the learning rate is halved, again and again
# AdamW without decay is Adam; nothing is clipped
RECIPE = Recipe(batch_size=16, learning_rate=1e-4, weight_decay=0.0, clip=math.inf, frozen=())
FACTS, HEADS = "fusionlib.json", "heads.safetensors"


def nyuv2_backbone(pretrained: str | PathLike[str], config: ResNetConfig | None = None) -> DenseBackbone:
    """Dilated ResNet-50 with a file of torchvision's weights (``resnet50-*.pth`` or safetensors).

    Raises: CheckpointError, KeyMismatch.
    """
    chosen = config or ResNetConfig()
    return DenseBackbone("resnet50-nyuv2", chosen, resnet50_state(pretrained, chosen), Scenes(*SIZE))


def train_nyuv2(
    task: str,
    data: str | PathLike[str],
    out: str | PathLike[str],
    pretrained: str | PathLike[str],
    *,
    validation: int = 0,
    epochs: int = EPOCHS,
    seed: int = 0,
    device: str = "auto",
    on_step: Callable[[int, int], None] = lambda done, steps: None,
    config: ResNetConfig | None = None,
) -> Path:
    """Fine-tune the encoder and a decoder on one task; called again it goes on from the last snapshot, once an epoch.

    Args:
        task: "segmentation", "depth" or "normal".
        data: folder of the prepared NYUv2 (see ``fusionlib.zoo.nyuv2``).
        out: folder to make: encoder, ``heads.safetensors``, and the facts. If it is there, nothing is done.
        pretrained: file of torchvision's ResNet-50 weights.
        validation: training pictures held out, the same for all tasks.
        epochs: over the training pictures; 40 as published.
        on_step: called with (steps done, steps in all).
        config: another shape of the encoder, for tests.
    Returns: ``out``.
    Raises: UnknownName, ParameterError, CheckpointError, KeyMismatch.
    Source: Liu et al. 2019 and LibMTL for decoder and losses; FusionBench for 40 epochs, batches of 16, Adam at 1e-4.
    Deviates: the rate is halved every 10 epochs, where FusionBench does not say; pictures are normalised as ResNet's
        were, which LibMTL leaves out; no augmentation.
    """
    target = Path(out).expanduser().absolute()
    chosen = _task(nyuv2_tasks(data, validation=validation), task)
    if (target / FACTS).is_file():
        return target
    backbone = nyuv2_backbone(pretrained, config)
    per_epoch = max(1, chosen.num_examples("train") // RECIPE.batch_size)
    recipe = Recipe(**{**vars(RECIPE), "steps": epochs * per_epoch})
    head = backbone.start_head(chosen, seed)
    partial = target.with_name(f".{target.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    trained = finetune(
        backbone,
        [chosen],
        [head],
        recipe,
        seed,
        partial / "snapshot.safetensors",
        lambda done: on_step(done, recipe.steps),
        names.resolve_device(device),
        lambda step, _: 0.5 ** (step // (HALVED * per_epoch)),
    )
    facts = {"task": task, "seed": seed, "epochs": epochs, "validation": validation, "seconds": round(trained.seconds)}
    _save(partial / "finished", trained.model.cpu(), {task: head.cpu()}, facts)
    os.replace(partial / "finished", target)
    shutil.rmtree(partial)
    return target


def nyuv2_suite(
    data: str | PathLike[str],
    checkpoints: Mapping[str, str | PathLike[str]],
    pretrained: str | PathLike[str],
    *,
    validation: int = 0,
    seed: int = 0,
    device: str = "auto",
    config: ResNetConfig | None = None,
) -> Suite:
    """The suite of some fine-tunes that ``train_nyuv2`` made, for ``fl.run`` and everything else.

    Args:
        checkpoints: task -> folder.
        validation: as it was in training; 0 leaves nothing to tune hyper-parameters on.
        seed: labels the records.
    Raises: UnknownName, ParameterError, CheckpointError, KeyMismatch.
    """
    backbone, where = nyuv2_backbone(pretrained, config), names.resolve_device(device)
    tasks = [_task(nyuv2_tasks(data, validation=validation), name) for name in checkpoints]
    folders = {name: Path(folder).expanduser() for name, folder in checkpoints.items()}
    for name, folder in folders.items():
        held_out = _facts(folder).get("validation")
        if held_out != validation:
            raise ParameterError(
                f"{folder} was trained with validation={held_out}; with validation={validation} its training pictures "
                f"of {name} would be others. Give the same number."
            )
    names.check_distinct(tuple(checkpoints))
    finetuned = {name: DilatedResNet.from_pretrained(folder).state_dict() for name, folder in folders.items()}
    heads = {task.name: backbone.head(task, folders[task.name] / HEADS) for task in tasks}
    identities = [hash_file(folder / "model.safetensors") for folder in folders.values()]
    return Suite(
        spec=SuiteSpec(backbone.name, tuple(checkpoints), "nyuv2", "full", names.check_seed(seed)),
        tasks=tuple(tasks),
        pretrained=backbone.state,
        finetuned=MappingProxyType(finetuned),
        heads=MappingProxyType({name: head.to(where) for name, head in heads.items()}),
        device=where,
        fingerprint=fingerprint_of(backbone, tasks, heads, identities),
        backbone=backbone,
    )


def _task(tasks: tuple[Task, ...], name: str) -> Task:
    for task in tasks:
        if task.name == name:
            return task
    raise ParameterError(f"NYUv2 has no task {name!r}.{suggest(str(name), [task.name for task in tasks])}")


def _save(folder: Path, model: Any, heads: Mapping[str, Any], facts: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    save_file({n: v for task, head in heads.items() for n, v in head_tensors(task, head).items()}, folder / HEADS)
    text = json.dumps({**facts, "files": {path.name: hash_file(path) for path in sorted(folder.iterdir())}}, indent=1)
    write_atomically(folder / FACTS, lambda temporary: temporary.write_text(text + "\n", encoding="utf-8"))


def _facts(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder / FACTS} can't be read ({error}). Give a folder that train_nyuv2 made."
        ) from error
