"""Finding a user's own classifiers: which kind a folder holds, how it reads examples, and its fine-tunes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from fusionlib.core import CheckpointError, ParameterError, StateDict
from fusionlib.zoo.adapter_config import first_line
from fusionlib.zoo.classifiers import ClassifierBackbone, check_divides, trunk
from fusionlib.zoo.folders import load_complete
from fusionlib.zoo.locate import locate
from fusionlib.zoo.own_preprocess import read_preprocess
from fusionlib.zoo.own_texts import read_texts
from fusionlib.zoo.reading import Reading
from fusionlib.zoo.task import Task
from fusionlib.zoo.weights import read_config


def classifier_backbone(name: str, folder: Path) -> ClassifierBackbone:
    """The backbone of sequence or image classifiers from a folder with any model of its architecture.

    Raises: CheckpointError, if transformers has no classifier of this architecture, or it can't be taken apart.
    """
    from transformers import (
        CONFIG_MAPPING,
        AutoConfig,
        AutoModelForImageClassification,
        AutoModelForSequenceClassification,
    )

    facts = read_config(folder)
    kind = facts.get("model_type")
    try:
        config: Any = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a configuration of anyone: transformers raises whatever it stumbles over
        if kind in CONFIG_MAPPING:
            raise CheckpointError(
                f"{folder / 'config.json'} describes no {kind!r} model ({first_line(error)})."
            ) from error
        code = ", and code of its own (auto_map) is never run" if "auto_map" in facts else ""
        raise CheckpointError(
            f"the backbone in {folder} is of type {kind!r}, unknown to transformers{code}. Give a model of an "
            "architecture that transformers has."
        ) from error
    autos: tuple[Any, ...] = (AutoModelForSequenceClassification, AutoModelForImageClassification)
    auto: Any = next((auto for auto in autos if type(config) in auto._model_mapping), None)
    if auto is None:
        raise CheckpointError(
            f"the backbone in {folder} is of type {kind!r}, of which transformers has no sequence or image classifier. "
            "CLIP models and classifiers can be evaluated on tasks; any others can be merged with fl.merge."
        )
    texts = auto is AutoModelForSequenceClassification
    if not texts and not isinstance(getattr(config, "image_size", None), int):
        raise CheckpointError(
            f"the configuration of this {kind!r} does not say the size of its pictures (image_size), so they can't be "
            "prepared for it. Models that take any size can be merged with fl.merge."
        )
    preprocess = cast(Reading, read_texts(folder, config) if texts else read_preprocess(folder, config))
    classifier = cast(Any, auto._model_mapping[type(config)])
    prefix = classifier.base_model_prefix + "."
    model = load_complete(auto, folder, prefix)
    state = {key: value.detach() for key, value in trunk(model).state_dict().items()}
    found = ClassifierBackbone(name, config, state, preprocess, folder=folder, auto=auto)
    check_divides(found, _sample(config, texts))
    return found


def own_classifiers(
    base: ClassifierBackbone, tasks: Sequence[Task], checkpoints: Mapping[str, str | PathLike[str]]
) -> tuple[dict[str, StateDict], dict[str, nn.Module]]:
    """Task -> weights of the backbone, and task -> head, in the order of the tasks.

    Raises: ParameterError if a task has no checkpoint; CheckpointError, KeyMismatch, UnknownName.
    """
    absent = [task.name for task in tasks if task.name not in checkpoints]
    if absent:
        raise ParameterError(
            f"checkpoints has nothing for {', '.join(absent)}. Give one checkpoint per task, or leave these tasks out."
        )
    found = {
        task.name: base.classifier(locate(checkpoints[task.name], f"checkpoint of task {task.name!r}"), task)
        for task in tasks
    }
    return {name: state for name, (state, _) in found.items()}, {name: head for name, (_, head) in found.items()}


def _sample(config: Any, texts: bool) -> dict[str, torch.Tensor]:
    """Some valid inputs."""
    if texts:
        ids = torch.arange(3, 9).clamp(max=config.vocab_size - 1)[None]
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    size = config.image_size
    generator = torch.Generator().manual_seed(0)
    return {"pixel_values": torch.randn(1, config.num_channels, size, size, generator=generator)}
