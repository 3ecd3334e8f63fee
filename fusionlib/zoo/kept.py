"""Tensors kept below the home to be computed once: a file each, with a checksum that every reading compares."""

from __future__ import annotations

from pathlib import Path

from fusionlib.core import CheckpointError, StateDict
from fusionlib.zoo.files import hash_tensors, write_atomically

_CHECKSUM = "sha256"
_REMEDY = "Delete the file: it is made again when it is needed."


def keep(path: Path, tensors: StateDict) -> None:
    """Write tensors with their checksum, in one step; CheckpointError, if that can't be written."""
    from safetensors.torch import save_file

    facts = {_CHECKSUM: hash_tensors(tensors)}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=facts))


def read_kept(path: Path, what: str) -> StateDict | None:
    """What ``keep`` wrote to a file; None if there is none.

    Args:
        what: it is, for messages: "cached pictures".

    Raises: CheckpointError, if a single bit of it is not as it was written.
    """
    from safetensors import SafetensorError, safe_open

    try:
        if not path.is_file():
            return None
        with safe_open(path, "pt") as file:
            facts = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (no iterator of its own)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{what} {path} can't be read ({error}). {_REMEDY}") from error
    if facts.get(_CHECKSUM) != hash_tensors(tensors):
        raise CheckpointError(f"{what} {path} have been damaged: their checksum does not fit. {_REMEDY}")
    return tensors
