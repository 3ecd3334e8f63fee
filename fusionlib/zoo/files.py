"""Where the zoo keeps its files, and how it names, writes and hashes them."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor

from fusionlib import _home
from fusionlib.core import CheckpointError, FusionError

DATA = Path(__file__).parent / "data" / "image"
TEXT = Path(__file__).parent / "data" / "text"
SCENES = Path(__file__).parent / "data" / "nyu"

_ADVICE = "Set FUSIONLIB_HOME to a folder that can be written."
_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_RESERVED = {"CON", "PRN", "AUX", "NUL", *(f"{port}{number}" for port in ("COM", "LPT") for number in range(10))}


def home() -> Path:
    """Folder of all that fusionlib makes: ``$FUSIONLIB_HOME``, else the user's cache folder.

    It holds ``checkpoints/`` (fine-tuned models), ``records/`` and ``cache/`` (decoded pictures); all but the
    records may be deleted at any time and is made again when needed. A relative ``$FUSIONLIB_HOME`` is taken from
    where the program began.

    Raises: CheckpointError, if something else than a folder is there, or the path is none that can be used.
    """
    _home.settle()
    named = os.environ.get(_home.NAME)
    what = f"{_home.NAME}={_short(named)}" if named else "the user's cache folder"
    if not named:
        import platformdirs

        named = platformdirs.user_cache_dir("fusionlib")
    try:
        path, found = Path(named).expanduser().absolute(), None
        with suppress(FileNotFoundError):  # it is made when something is written
            found = path.stat()
    except (OSError, RuntimeError, ValueError) as error:  # below a file, too long, ~nobody, unreadable
        raise CheckpointError(f"{what} can't be used: {_reason(error)}. {_ADVICE}") from error
    if found is not None and not stat.S_ISDIR(found.st_mode):
        raise CheckpointError(f"{what} is no folder. {_ADVICE}")
    return path


def check_writable(folder: Path | None = None) -> None:
    """Raise CheckpointError unless files can be written in a folder, the home if None; it is made if need be.

    For what takes long and is stored at its end.
    """
    folder = home() if folder is None else folder
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Whatever says that a file can't be written, a full disk or a lack of rights, becomes a CheckpointError.

    Args:
        path: what is written, for the message.
    """
    try:
        yield
    except FusionError:
        raise
    except Exception as error:
        cause = _cause(error)
        if cause is None:
            raise
        raise CheckpointError(f"{path} can't be written: {_reason(cause)}. {_remedy(path, cause)}") from error


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write(temporary)`` in the folder of ``path``, then move the result into place in one step.

    Raises: CheckpointError, if that can't be written; what was at ``path`` before is still there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(temporary)
            os.replace(temporary, path)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def file_name(text: str) -> str:
    """A name, of a task say, as part of a file's name: itself if it is plain, else what is plain of it and a hash.

    Different names stay different, and none leads out of a folder: ``"../a"`` becomes ``"a-"`` and eight digits.
    """
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip(".-")[:60]
    if plain and plain == text and plain.split(".")[0].upper() not in _RESERVED:
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{plain.split('.')[0] or 'x'}-{digest}"


def _cause(error: BaseException | None) -> BaseException | None:
    """What in a chain of errors says that a file can't be written; None if nothing does."""
    from safetensors import SafetensorError

    while error is not None:
        if isinstance(error, (OSError, SafetensorError)):
            return error
        error = error.__cause__ or error.__context__
    return None


def _full(error: BaseException) -> bool:
    return getattr(error, "errno", None) in _FULL or "os error 28" in str(error)  # which is safetensors' own


def _reason(error: BaseException) -> str:
    if _full(error):
        return "no space is left for it"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[0].lower() + error.strerror[1:]
    return " ".join(str(error).rstrip(".").split()) or type(error).__name__


def _remedy(path: Path, error: BaseException) -> str:
    first = "Make room on the disk" if _full(error) else "Give yourself the right to write there"
    with suppress(CheckpointError, ValueError):
        if path.is_relative_to(home()):
            return f"It is in FUSIONLIB_HOME ({home()}). {first}, or set FUSIONLIB_HOME to another folder."
    return f"{first}, or name another folder."


def _short(text: str) -> str:
    return repr(text if len(text) <= 120 else f"{text[:60]}...{text[-40:]}")


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hash_files(paths: Iterable[Path], root: Path) -> str:
    """SHA-256 over several files: their names below ``root`` and their contents, in the order of the names."""
    return hash_listing({path: hash_file(path) for path in paths}, root)


def hash_listing(hashes: Mapping[Path, str], root: Path) -> str:
    """What ``hash_files`` gives, from the hash of each file."""
    digest = hashlib.sha256()
    for path in sorted(hashes):
        digest.update(f"{path.relative_to(root).as_posix()}\0{hashes[path]}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over named tensors: names, dtypes, shapes and bytes, whatever their order or device."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
