"""The file that ``fusionlib merge`` reads: which method, which models, which hyper-parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from fusionlib import methods
from fusionlib.bench.yaml_values import load_file
from fusionlib.core import ParameterError, UnknownName, suggest

_KEYS = ("method", "pretrained", "finetuned", "keep", "hyperparameters")
_SUBJECT = ("method", "pretrained", "finetuned", "keep", "folder")  # what fl.merge takes beside hyper-parameters
# keys of mergekit's files, and where there is one the key that says the same here
_MERGEKIT = {
    "merge_method": "method",
    "base_model": "pretrained",
    "models": "finetuned",
    "parameters": "hyperparameters",
    "slices": None,
    "dtype": None,
    "out_dtype": None,
    "tokenizer": None,
    "tokenizer_source": None,
    "chat_template": None,
}


def read_recipe(path: Path) -> dict[str, Any]:
    """A YAML file with ``method``, ``pretrained``, ``finetuned`` and, if wanted, ``keep`` and ``hyperparameters``.

    Paths in it are relative to the folder in which the command runs, as they are in Python.

    Returns: the arguments of ``merge`` but for the folder.
    Raises: ParameterError, with the line, saying what is missing, unknown or of the wrong kind.
    """
    values, lines = load_file(path)
    if not isinstance(values, Mapping):
        raise ParameterError(f"{path} must hold `name: value` lines. Allowed: {', '.join(_KEYS)}.")

    def at(key: str) -> str:
        return f"{path.name}, line {lines[key]}" if key in lines else path.name

    _check_keys(values, path.name, at)
    for key, example in (("method", "ties_merging"), ("pretrained", "path/to/model")):
        if not isinstance(values.get(key), str) or not values[key].strip():
            raise ParameterError(f"{at(key)}: {key} must be a string, as in `{key}: {example}`.")
    models = values.get("finetuned")
    models = list(models.values()) if isinstance(models, Mapping) else models
    keep = [] if values.get("keep") is None else values["keep"]
    for key, listed in (("finetuned", models), ("keep", keep)):
        if not isinstance(listed, list) or not all(isinstance(item, str) and item.strip() for item in listed):
            raise ParameterError(f"{at(key)}: {key} must be a list of strings, as in `{key}: [one, two]`.")
    if not models:
        raise ParameterError(f"{at('finetuned')}: finetuned is empty: name at least one fine-tuned model.")
    settings = {} if values.get("hyperparameters") is None else values["hyperparameters"]
    if not isinstance(settings, Mapping):
        raise ParameterError(
            f"{at('hyperparameters')}: hyperparameters must be a mapping, as in `hyperparameters: {{scale: 0.3}}`."
        )
    _refuse_subjects(settings, at("hyperparameters"))
    _check_method(values["method"], at("method"))
    for key, named in (("pretrained", [values["pretrained"]]), ("finetuned", models)):
        for name in named:
            _check_place(name, path, at(key))
    chosen = {"method": values["method"], "pretrained": values["pretrained"], "finetuned": models, "keep": keep}
    return {**chosen, **settings}


def changed(asked: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe with hyper-parameters, or ``keep``, from the command line.

    Raises: ParameterError for what belongs into the file.
    """
    _refuse_subjects([key for key in overrides if key != "keep"], "-p")
    if not isinstance(overrides.get("keep", []), list):
        raise ParameterError("-p: keep must be a list of patterns, as in -p keep '[classifier.*]'.")
    return {**asked, **overrides}


def _check_keys(values: Mapping[str, Any], name: str, at: Callable[[str], str]) -> None:
    theirs = [key for key in values if key in _MERGEKIT]
    if theirs:
        ours = [f"{key} is {_MERGEKIT[key]} here" for key in theirs if _MERGEKIT[key]]
        without = [key for key in theirs if not _MERGEKIT[key]]
        also = f"; there is nothing for {', '.join(without)}" if without else ""
        raise ParameterError(
            f"{name} is written for mergekit ({', '.join(theirs)}): {', '.join(ours) or 'other keys are used here'}"
            f"{also}. Write, for example, `method: ties_merging`, `pretrained: path/to/model`, "
            "`finetuned: [one, two]` and `hyperparameters: {density: 0.2}`."
        )
    for key in values:
        if key not in _KEYS:
            hint = (
                f" {key} is a hyper-parameter: write it below `hyperparameters:`." if _is_setting(values, key) else ""
            )
            raise ParameterError(f"{at(key)}: {key!r} is not part of a merge.{hint or suggest(key, _KEYS)}")


def _is_setting(values: Mapping[str, Any], key: str) -> bool:
    method = values.get("method")
    return method in methods.names() and key in inspect.signature(methods.get(method).fuse).parameters


def _refuse_subjects(names: Iterable[str], where: str) -> None:
    for name in names:
        if name in _SUBJECT:
            instead = "give it as --out" if name == "folder" else f"set `{name}:` in the file, once"
            raise ParameterError(f"{where}: {name!r} is not a hyper-parameter; {instead}.")


def _check_method(name: str, where: str) -> None:
    try:
        methods.get(name)
    except UnknownName as error:
        plain = name.lower().replace("-", "_").replace(" ", "_")
        near = [known for known in methods.names() if known == plain or known.startswith(f"{plain}_")]
        hint = f"no fusion method is called {name!r}. Did you mean {near[0]!r}?" if len(near) == 1 else str(error)
        raise ParameterError(f"{where}: {hint}") from None


def _check_place(name: str, recipe: Path, where: str) -> None:
    """Say where a path is looked for, if nothing is there and something lies beside the recipe, or it is no hub id."""
    try:
        place = Path(name).expanduser()
        if place.exists() or place.is_absolute():
            return
        beside = (recipe.parent / place).exists()
    except (OSError, RuntimeError):  # a name too long, or ~nobody: what reads the models says so
        return
    if beside or name.startswith(("./", "../")):
        hint = f"write {(recipe.parent / place).as_posix()}, or run the command there." if beside else "check the path."
        raise ParameterError(
            f"{where}: there is no {name} in {Path.cwd()}, to which paths are relative, wherever the recipe lies"
            f"{', though there is one beside the recipe: ' if beside else ': '}{hint}"
        )
