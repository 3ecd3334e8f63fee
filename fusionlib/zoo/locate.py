"""From what a user wrote to a folder: a local path, or the hub's copy of an id."""

from __future__ import annotations

import re
from os import PathLike
from pathlib import Path

from fusionlib.core import CheckpointError, UnknownName, suggest
from fusionlib.zoo.hub.table import families
from fusionlib.zoo.names import EMBEDDED_BACKBONES

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def locate(name: str | PathLike[str], what: str) -> Path:
    """The folder of a checkpoint.

    Args:
        name: a local folder or a hub id, ``owner/name``; a folder that exists wins.
        what: "backbone" or "checkpoint of task ...", for messages.

    Raises:
        CheckpointError: there is no such folder, or the hub can't be reached or has no such id.
        UnknownName: it is a bare word that is neither.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path.absolute()
    text = str(name)
    if path.is_file():
        raise CheckpointError(f"the {what}, {text}, is a file; give the folder it is in, with its config beside it.")
    if isinstance(name, str) and _HUB_ID.fullmatch(name):
        return fetch(name, what)
    if path.name == text and not text.startswith("."):
        raise UnknownName(
            f"the {what}, {text!r}, is not a name in the zoo, a local folder, or a hub id (owner/name)."
            f"{suggest(text, [*EMBEDDED_BACKBONES, *families()])}"
        )
    raise CheckpointError(f"the {what}, {text}, is not there: no such folder. Check the path.")


def fetch(name: str, what: str, weights: tuple[str, str] = ("*.safetensors", "*.bin")) -> Path:
    """The local copy of a hub repository, fetched if need be: its configs, and safetensors rather than ``.bin``.

    Args:
        weights: patterns of the files of weights: those wanted, and those to take where there are none.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        folder = Path(snapshot_download(name, allow_patterns=["*.json", "*.txt", weights[0]]))
        if not list(folder.glob(weights[0])):
            folder = Path(snapshot_download(name, allow_patterns=["*.json", "*.txt", weights[1]]))
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(
            f"the {what}, {name!r}, is neither a local folder nor a hub repository that can be fetched now ({reason}) "
            f"Check the spelling; without a network, run `hf download {name}` once where there is one (and unset "
            "HF_HUB_OFFLINE there), or copy the repository and give its folder."
        ) from error
    return folder
