"""From what a user wrote to a folder: a local path, or the hub's copy of an id."""

from __future__ import annotations

import difflib
import logging
import re
from contextlib import suppress
from dataclasses import replace
from os import PathLike
from pathlib import Path

from fusionlib.core import CheckpointError, UnknownName, suggest
from fusionlib.zoo.hub import repos
from fusionlib.zoo.hub.repos import WEIGHTS, Repo
from fusionlib.zoo.hub.retrying import reason_of
from fusionlib.zoo.hub.table import families
from fusionlib.zoo.names import EMBEDDED_BACKBONES

_logger = logging.getLogger("fusionlib.zoo")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w.-]+)?")


def locate(name: str | PathLike[str], what: str) -> Path:
    """The folder of a checkpoint.

    Args:
        name: a local folder or a hub id, ``owner/name`` or ``owner/name@revision``; a folder that exists wins.
        what: "backbone" or "checkpoint of task ...", for messages.

    Raises:
        CheckpointError: there is no such folder, or the hub can't be reached or has no such id.
        UnknownName: it is a bare word that is neither.
    """
    text = str(name)
    path = local_path(name, what)
    if path.is_dir():
        return path.absolute()
    is_file = path.is_file()
    if is_file and path.suffix == ".gguf":
        raise CheckpointError(
            f"the {what}, {text}, is a GGUF file, quantised for inference. Merge before quantising: give the folder of "
            "the float model."
        )
    if is_file:
        raise CheckpointError(f"the {what}, {text}, is a file; give the folder it is in, with its config beside it.")
    if isinstance(name, str) and _HUB_ID.fullmatch(name):
        return fetch(name, what)
    if path.name == text and not text.startswith("."):
        raise UnknownName(
            f"the {what}, {text!r}, is not a name in the zoo, a local folder, or a hub id (owner/name)."
            f"{suggest(text, [*EMBEDDED_BACKBONES, *families()])}"
        )
    relative = "" if path.is_absolute() else f" Relative paths start from the working folder, now {Path.cwd()}."
    raise CheckpointError(f"the {what}, {text}, is not there: no such folder. Check the path.{relative}")


def local_path(name: str | PathLike[str], what: str) -> Path:
    """The path that a user wrote, with ``~`` expanded; CheckpointError if there can be no such path."""
    try:
        path = Path(name).expanduser()
        with suppress(FileNotFoundError, NotADirectoryError):
            path.stat()
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        shown = str(name) if len(str(name)) < 200 else f"{str(name)[:60]}..."
        what = what.replace(str(name), shown)
        raise CheckpointError(f"the {what}, {shown!r}, can't be read ({reason}). Check the path.") from None
    return path


def fetch(name: str, what: str, weights: tuple[str, str] = WEIGHTS) -> Path:
    """The local copy of a hub repository, fetched if need be: its configs, and safetensors rather than ``.bin``.

    Args:
        name: "owner/name"; "@revision" may follow.
        weights: patterns of the files of weights: those wanted, and those to take where there are none.
    """
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    repo = Repo(name, weights=weights, companions=True)
    try:
        return repos.cached(repo) or repos.download(repo)
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        older = repos.cached(replace(repo, companions=False))
        if older is not None:  # fetched by a version that left templates and folders below where they were
            _logger.info("%s: templates, code and folders beside the weights are not in the hub's cache.", name)
            return older
        raise CheckpointError(
            f"the {what}, {name!r}, is neither a local folder nor a hub repository that can be fetched now "
            f"({reason_of(error)}) Check the spelling{_beside(name)}; without a network, run "
            f"`hf download {repo.name}` once where there is one (and unset HF_HUB_OFFLINE there), or copy the "
            "repository and give its folder."
        ) from error


def is_hub_id(name: str | PathLike[str]) -> bool:
    """Whether it is written as the hub's ids are, ``owner/name``."""
    return isinstance(name, str) and _HUB_ID.fullmatch(name) is not None


def fetch_data(name: str, what: str) -> Path:
    """The local copy of a hub data set's Parquet files, fetched if need be; CheckpointError if that can't be."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    repository, _, revision = name.partition("@")
    try:
        found = snapshot_download(
            repository, revision=revision or None, repo_type="dataset", allow_patterns=["*.parquet"]
        )
        return Path(found)
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(
            f"the {what}, {name!r}, is neither a local path nor a hub data set that can be fetched now ({reason}) "
            f"Check the spelling{_beside(name)}; without a network, run `hf download --repo-type dataset {name}` once "
            "where there is one (and unset HF_HUB_OFFLINE there), or copy its Parquet files and give their folder."
        ) from error


def _beside(name: str) -> str:
    # "data/mnits" reads like a hub id: where there is a local folder "data", say what is in it that looks like it.
    path = Path(name)
    there = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, there, n=1)
    return f" ({(path.parent / close[0]).as_posix()!r} is here)" if close else ""
