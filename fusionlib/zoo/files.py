"""Where the zoo keeps its files, and how it writes and hashes them."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

DATA = Path(__file__).parent / "data" / "image"
TEXT = Path(__file__).parent / "data" / "text"
SCENES = Path(__file__).parent / "data" / "nyu"


def home() -> Path:
    """Folder of all that fusionlib makes: ``$FUSIONLIB_HOME``, else the user's cache folder.

    It holds ``checkpoints/`` (fine-tuned models) and ``cache/`` (decoded pictures); both may be deleted at
    any time and are made again when needed.
    """
    named = os.environ.get("FUSIONLIB_HOME")
    if named:
        return Path(named).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_cache_dir("fusionlib"))


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write(temporary)`` in the folder of ``path``, then move the result into place in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hash_files(paths: Iterable[Path], root: Path) -> str:
    """SHA-256 over several files: their names below ``root`` and their contents, in the order of the names."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{path.relative_to(root).as_posix()}\0{hash_file(path)}\n".encode())
    return digest.hexdigest()


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over named tensors: names, dtypes, shapes and bytes, whatever their order or device."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
