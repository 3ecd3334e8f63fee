"""What lies beside the weights of a model and travels with them, in folders and from the hub."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

# weights, in whatever format, and packed data: a merged model has its own, or none
_WEIGHTS = (
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".index.json", ".gguf", ".onnx", ".onnx_data"),
    *(".npz", ".npy", ".pkl", ".pickle", ".ot", ".tflite", ".mlmodel", ".parquet", ".arrow", ".zip", ".tar", ".gz"),
)
# what training leaves behind, an adapter's files, and other models in folders of their own
_LEFT = re.compile(
    r"(training_args|optimizer|scheduler|rng_state|scaler|trainer_state|adapter_|events\.out\.tfevents|all_results"
    r"|train_results|eval_results)"
)
_OTHERS = re.compile(
    r"(checkpoint|global_step|step|epoch)[-_]?\d+|runs|logs|wandb|onnx|openvino|coreml|flax|original|gguf|__pycache__"
)
_NUMBERED = re.compile(r"\d+_[A-Za-z]\w*")
_TEXT = (".json", ".txt", ".model", ".jinja", ".py", ".yaml", ".yml", ".tiktoken", ".vocab", ".bpe", ".spm")


def companions(folder: Path) -> list[str]:
    """Paths below a model's folder that travel with it: configurations, tokenizer, templates, code (never run).

    Folders below come along with all such files; those that ``modules.json`` of sentence-transformers lists, with
    their weights too.
    """
    listed = _modules(folder)
    found = []
    for place, inner, files in os.walk(folder):
        below = PurePosixPath(Path(place).relative_to(folder).as_posix())
        inner[:] = sorted(name for name in inner if not name.startswith(".") and not _OTHERS.fullmatch(name))
        for name in sorted(files):
            path = (below / name).as_posix()
            if (Path(place) / name).is_file() and travels(path, listed):
                found.append(path)
    return found


def travels(path: str, modules: Iterable[str] = ()) -> bool:
    """Whether a file, by its path below a model's folder, travels with the model."""
    *folders, name = PurePosixPath(path).parts
    if any(part.startswith(".") for part in (*folders, name)) or any(_OTHERS.fullmatch(part) for part in folders):
        return False
    if _LEFT.match(name) or path == "README.md":
        return False
    return not name.endswith(_WEIGHTS) or (bool(folders) and folders[0] in modules)


def beside(paths: Iterable[str]) -> list[str]:
    """Which files of a repository are fetched because they travel with its weights.

    What ``modules.json`` lists is not known before it is there: sentence-transformers numbers those folders, 2_Dense.
    """
    modules = {folder for path in paths if (folder := path.partition("/")[0]) != path and _NUMBERED.fullmatch(folder)}
    return [
        path
        for path in paths
        if travels(path, modules)
        and (path.endswith(_TEXT) or (path.partition("/")[0] in modules and _is_weights(path)))
    ]


def _is_weights(path: str) -> bool:
    return path.endswith((".safetensors", ".bin"))


def _modules(folder: Path) -> list[str]:
    """The folders below that ``modules.json`` lists."""
    try:
        listed = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        return [entry["path"] for entry in listed if entry["path"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
