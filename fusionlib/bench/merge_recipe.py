"""The file that ``fusionlib merge`` reads: which method, which models, which hyper-parameters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusionlib.core import ParameterError, suggest


def read_recipe(path: Path) -> dict[str, Any]:
    """A YAML file with ``method``, ``pretrained``, ``finetuned`` and, if wanted, ``keep`` and ``hyperparameters``.

    Returns: the arguments of ``merge`` but for the folder.
    Raises: ParameterError, saying what is missing, unknown or of the wrong kind.
    """
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ParameterError(f"{path} can't be read as YAML: {error}") from None
    allowed = ("method", "pretrained", "finetuned", "keep", "hyperparameters")
    if not isinstance(values, Mapping):
        raise ParameterError(f"{path} must hold `name: value` lines. Allowed: {', '.join(allowed)}.")
    for key in values:
        if key not in allowed:
            raise ParameterError(f"{path}: {key!r} is not part of a merge.{suggest(str(key), allowed)}")
    for key, example in (("method", "ties_merging"), ("pretrained", "path/to/model")):
        if not isinstance(values.get(key), str):
            raise ParameterError(f"{path}: {key} must be a string, as in `{key}: {example}`.")
    models = values.get("finetuned")
    models = list(models.values()) if isinstance(models, Mapping) else models
    for key, listed in (("finetuned", models), ("keep", values.get("keep", []))):
        if not isinstance(listed, list) or not all(isinstance(item, str) for item in listed):
            raise ParameterError(f"{path}: {key} must be a list of strings, as in `{key}: [one, two]`.")
    settings = values.get("hyperparameters") or {}
    if not isinstance(settings, Mapping) or not all(isinstance(name, str) for name in settings):
        raise ParameterError(f"{path}: hyperparameters must be a mapping, as in `hyperparameters: {{scale: 0.3}}`.")
    chosen = {"method": values["method"], "pretrained": values["pretrained"], "finetuned": models}
    return {**chosen, "keep": values.get("keep", []), **settings}
