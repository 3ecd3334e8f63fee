"""Where an open_clip model is: a folder, a hub id, or the name of an architecture with a file of weights."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from fusionlib.core import CheckpointError, ParameterError, StateDict, UnknownName, suggest
from fusionlib.zoo import openclip
from fusionlib.zoo.backbone import ClipBackbone
from fusionlib.zoo.locate import fetch, locate
from fusionlib.zoo.openclip_preprocess import read_preprocess
from fusionlib.zoo.text_tower import TextTower, build_text_model
from fusionlib.zoo.weights import build_wanted, check_keys, read_plain

CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_HUB, _FOLDER, _ARCHITECTURE = "hf-hub:", "local-dir:", "open_clip:"
CLIP_SCALE = 100.0  # CLIP's learnt scale, at its cap; for vision towers that come without their scale


@dataclass(frozen=True)
class Source:
    """An open_clip model that was found.

    Attributes:
        where: named in errors.
        model: ``model_cfg`` of its configuration.
        preprocess: ``preprocess_cfg``; empty means open_clip's defaults.
        weights: the file.
    """

    where: str
    model: Mapping[str, Any]
    preprocess: Mapping[str, Any]
    weights: Path


def find(name: str | PathLike[str]) -> Source | None:
    """The open_clip model of this name; None if it is something else.

    Args:
        name: "hf-hub:owner/name", "local-dir:folder", "open_clip:architecture:file", or a local folder or hub id
            whose files are open_clip's and not transformers'.

    Raises: CheckpointError, UnknownName, ParameterError.
    """
    text = str(name)
    if text.startswith(_ARCHITECTURE):
        return _architecture(text)
    folder = find_folder(name, "backbone")
    return None if folder is None else _in_folder(folder)


def find_folder(name: str | PathLike[str], what: str) -> Path | None:
    """The folder of an open_clip model, fetched from the hub if need be; None if it is something else."""
    text = str(name)
    if text.startswith(_HUB):
        return fetch(text.removeprefix(_HUB), what, (re.escape(WEIGHTS[0]), re.escape(WEIGHTS[1])))
    if text.startswith(_FOLDER):
        return locate(Path(text.removeprefix(_FOLDER)), what)
    folder = locate(name, what)
    return folder if weights_file(folder) is not None and not _is_of_transformers(folder) else None


def read_state(path: Path) -> StateDict:
    """Tensors of one file: a state dict, or a checkpoint of open_clip's training, which holds one beside others.

    Raises: CheckpointError if it can't be read without running code.
    """
    loaded = read_plain(path)
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise CheckpointError(f"{path} holds something other than a state dict. Save model.state_dict() there.")
    return dict(loaded)


def weights_file(folder: Path) -> Path | None:
    """open_clip's weights in a folder, safetensors first."""
    return next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)


def backbone(name: str | PathLike[str], source: Source) -> ClipBackbone:
    """An open_clip model as a backbone: its vision tower converted, its text tower read when a head is needed.

    Raises: CheckpointError if it is no plain vision transformer; KeyMismatch.
    """
    config = openclip.vision_config(source.model, source.where)
    found = read_state(source.weights)
    state = openclip.vision_state(found)
    wanted = build_wanted(config)
    check_keys(state, wanted, str(source.weights))
    whole = openclip.without_wrappers(found)
    scale = whole["logit_scale"].float().exp().item() if "logit_scale" in whole else CLIP_SCALE
    return ClipBackbone(
        name=str(name),
        config=config,
        state={key: state[key] for key in wanted},
        preprocess=read_preprocess(source.preprocess, cast(int, config.image_size), source.where),
        logit_scale=scale,
        text_tower=functools.cache(functools.partial(text_tower, source))
        if any("token_embedding" in key for key in whole)
        else None,
    )


def text_tower(source: Source) -> TextTower:
    """The text tower with open_clip's tokenizer.

    Raises: CheckpointError if it is another than CLIP's; ParameterError if open_clip is not installed.
    """
    config = openclip.text_config(source.model, source.where)
    tokenizer = _open_clip().SimpleTokenizer(context_length=config.max_position_embeddings)
    model = build_text_model(config, openclip.text_state(read_state(source.weights)), str(source.weights))
    return TextTower(model, lambda texts: {"input_ids": tokenizer(texts)})


def _architecture(text: str) -> Source:
    name, _, file = text.removeprefix(_ARCHITECTURE).partition(":")
    library = _open_clip()
    model = library.get_model_config(name)
    if model is None:
        raise UnknownName(f"open_clip has no architecture {name!r}.{_close(name, library.list_models())}")
    path = Path(file).expanduser()
    if not file or not path.is_file():
        raise CheckpointError(
            f"{text!r} names {'no file of weights' if not file else f'weights in {path}, where there is no file'}. "
            f"Write {_ARCHITECTURE}{name}:path/to/weights.pt; models on the hub are {_HUB}owner/name."
        )
    return Source(text, model, {}, path)


def _in_folder(folder: Path) -> Source:
    path = folder / CONFIG
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        model, preprocess = facts["model_cfg"], facts.get("preprocess_cfg") or {}
        absent = [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in model]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} can't be read as open_clip's configuration ({error!r}). Copy it there, or name the architecture: "
            f"{_ARCHITECTURE}ViT-B-32:path/to/weights.pt."
        ) from error
    weights = weights_file(folder)
    if absent or weights is None:
        lacks = f"no {', '.join(absent)} in {CONFIG}" if absent else f"none of {', '.join(WEIGHTS)}"
        raise CheckpointError(f"{folder} is no complete open_clip model: {lacks}. Copy or make it again.")
    return Source(str(folder), model, preprocess, weights)


def _is_of_transformers(folder: Path) -> bool:
    """Whether there is a configuration of transformers too, whose weights are then preferred."""
    try:
        return "model_type" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def _close(name: str, known: list[str]) -> str:
    return suggest(name, [other for other in known if other.lower()[:5] == name.lower()[:5]] or known[:20])


def _open_clip() -> Any:
    try:
        import open_clip
    except ImportError as error:
        raise ParameterError(
            f"this needs open_clip, which can't be imported ({error}). Install it: pip install fusionlib[openclip]"
        ) from error
    return open_clip
