"""A user's own backbone and fine-tunes, brought to the keys of ``CLIPVisionModelWithProjection``."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusionlib.core import CheckpointError, ParameterError, StateDict
from fusionlib.zoo import openclip, openclip_source
from fusionlib.zoo.adapter_config import first_line
from fusionlib.zoo.adapter_merging import merge_adapter
from fusionlib.zoo.adapters import is_adapter
from fusionlib.zoo.architectures import architecture
from fusionlib.zoo.backbone import Backbone, ClipBackbone
from fusionlib.zoo.key_styles import restyle
from fusionlib.zoo.linearized_adapters import is_linearized, merge_linearized
from fusionlib.zoo.locate import locate
from fusionlib.zoo.openclip_source import CLIP_SCALE
from fusionlib.zoo.own_preprocess import read_preprocess
from fusionlib.zoo.text_tower import read_text_tower
from fusionlib.zoo.weights import build_wanted, check_keys, read_config, read_weights

if TYPE_CHECKING:
    from transformers import CLIPVisionConfig

_TEXT = ("text_model.", "text_projection.", "logit_scale")
_PROJECTION = "visual_projection.weight"
_log = logging.getLogger("fusionlib")


def own_backbone(name: str | PathLike[str]) -> Backbone:
    """A backbone from a local folder or the hub: a CLIP vision model with projection, a full CLIP, open_clip's, or of
    an architecture that has sequence or image classifiers.

    Raises: CheckpointError, KeyMismatch, UnknownName.
    """
    source = openclip_source.find(name)
    if source is not None:
        return openclip_source.backbone(name, source)
    folder = locate(name, "backbone")
    facts = read_config(folder)
    kind = facts.get("model_type")
    if kind not in ("clip", "clip_vision_model"):
        from fusionlib.zoo.own_classifiers import classifier_backbone

        return classifier_backbone(str(name), folder)
    config, wanted = _vision_config(facts, folder)
    found = read_weights(folder)
    scale = next((value for name, value in found.items() if name.rpartition(".")[2] == "logit_scale"), None)
    scale = facts.get("logit_scale") if scale is None else scale.float().exp().item()
    state = _vision(found, config, folder)
    check_keys(state, wanted, str(folder))
    return ClipBackbone(
        name=str(name),
        config=config,
        state={key: state[key].float() for key in wanted},
        preprocess=read_preprocess(folder, config),
        logit_scale=CLIP_SCALE if scale is None else float(scale),
        text_tower=functools.cache(functools.partial(read_text_tower, folder)) if kind == "clip" else None,
    )


def _vision_config(facts: Mapping[str, Any], folder: Path) -> tuple[CLIPVisionConfig, StateDict]:
    """The configuration of the vision tower that ``config.json`` describes, and the tensors of such a tower."""
    from transformers import CLIPVisionConfig

    try:
        if facts["model_type"] == "clip":
            facts = {**facts["vision_config"], "projection_dim": facts.get("projection_dim", 512)}
        config: CLIPVisionConfig = CLIPVisionConfig.from_dict({**facts, "dtype": "float32"})
        return config, build_wanted(config)
    except Exception as error:  # a configuration of anyone: transformers raises whatever it stumbles over
        raise CheckpointError(
            f"{folder / 'config.json'} describes no vision tower of a CLIP ({first_line(error)}). Save the model again "
            "with save_pretrained."
        ) from error


def own_finetuned(
    base: Backbone, tasks: Sequence[str], checkpoints: Mapping[str, str | PathLike[str]]
) -> dict[str, StateDict]:
    """Task -> weights of a user's fine-tunes, in the order of the tasks: folders, hub ids, or files of weights.

    PEFT adapters are merged in, and weights of open_clip's models are brought to the backbone's keys.

    Raises: ParameterError if a task has no checkpoint; CheckpointError, KeyMismatch, UnknownName.
    """
    absent = [task for task in tasks if task not in checkpoints]
    if absent:
        raise ParameterError(
            f"checkpoints has nothing for {', '.join(absent)}. Give one checkpoint per task, or leave these tasks out."
        )
    return {task: _own_state(base, checkpoints[task], f"checkpoint of task {task!r}") for task in tasks}


def _own_state(base: Backbone, name: str | PathLike[str], what: str) -> StateDict:
    file = Path(name).expanduser()
    if not file.is_file():
        found = openclip_source.find_folder(name, what)
        if found is None:
            return _of_transformers(base, locate(name, what))
        file = openclip_source.weights_file(found)
        if file is None:
            raise CheckpointError(f"{found} holds none of {', '.join(openclip_source.WEIGHTS)}. Copy one there.")
    state = openclip_source.read_state(file)
    state = openclip.vision_state(state) if openclip.is_openclip(state) else _vision(state, base.config, file)
    check_keys(state, base.state, str(file))
    return {key: state[key].float() for key in base.state}


def _of_transformers(base: Backbone, folder: Path) -> StateDict:
    if is_linearized(folder):
        return merge_linearized(base, folder)
    if is_adapter(folder):
        return merge_adapter(base, folder)
    state = _vision(read_weights(folder), base.config, folder)
    # A CLIPVisionModel ends before the projection, as the published fine-tunes of CLIP do, and so does what a
    # classifier of pictures has of a CLIP: theirs is the backbone's.
    kind = read_config(folder).get("architectures")
    if _PROJECTION not in state and kind in (["CLIPVisionModel"], ["CLIPForImageClassification"]):
        state[_PROJECTION] = base.state[_PROJECTION]
    if kind == ["CLIPForImageClassification"]:
        head = [name for name in state if name.startswith("classifier.")]
        _log.info("%s: left out, since CLIP's features are projected first: %s", folder, ", ".join(head))
        state = {name: tensor for name, tensor in state.items() if name not in head}
    check_keys(state, base.state, str(folder))
    return {name: state[name].float() for name in base.state}


def _vision(state: StateDict, config: Any, where: Path) -> StateDict:
    """The vision tower of a CLIP under the keys of CLIPVisionModelWithProjection.

    Taken away: the text tower and the logit scale of a full CLIPModel, constants that older versions of transformers
    stored, and what wrappers put before names. Added: the prefix ``vision_model.`` where a bare tower lacks it.
    """
    known = architecture(config, "CLIPVisionModelWithProjection")
    state = restyle(state, known, str(where)).state
    return {name: tensor for name, tensor in state.items() if not name.startswith(_TEXT)}
