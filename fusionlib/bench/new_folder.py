"""A folder that appears only when everything in it is written; a process that is killed leaves nothing that stays."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fusionlib.core import CheckpointError

_PREFIX = ".fusionlib-"
_LOCK = ".lock"


def free_place(folder: str | os.PathLike[str]) -> Path:
    """Where a new folder will be; it is tried whether one can be made there, and nothing is left of the trial.

    Raises: CheckpointError, if something is there already, or none can be made.
    """
    target = _target(folder)
    near = next((parent for parent in target.parents if parent.exists()), Path("/"))
    try:
        trial = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=near))
        try:
            (trial / target.name).mkdir()
        finally:
            shutil.rmtree(trial, ignore_errors=True)
    except OSError as error:
        raise _refused(target, error) from None
    return target


@contextmanager
def new_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary folder beside the target to write to; it becomes the target when the block ends without an error.

    Raises: CheckpointError, if something is there already, or by then, or it can't be written.
    """
    target = _target(folder)
    parent = target.parent
    made = [each for each in (parent, *parent.parents) if not each.exists()]
    building = None
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _clear(parent)
        building = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        building.chmod(0o777 & ~_umask())  # as mkdir would; mkdtemp makes folders for the owner alone
        with _locked(building):
            yield building
        building.rename(target)
    except OSError as error:
        if isinstance(error, CheckpointError):
            raise
        raise _refused(target, error) from error
    except BaseException as error:
        if type(error).__name__ == "SafetensorError":  # what its writer makes of a disk that is full
            raise CheckpointError(f"{target} can't be written ({error}); nothing of it was left there.") from error
        raise
    finally:
        if building is not None:
            shutil.rmtree(building, ignore_errors=True)
        if not target.exists():
            for each in made:
                with suppress(OSError):  # it is not empty if another process writes there
                    each.rmdir()


def _target(folder: str | os.PathLike[str]) -> Path:
    try:
        if "\0" in str(folder) or not str(folder):
            raise ValueError("a path has letters, and no NUL")
        target = Path(folder).expanduser().absolute()
        there = target.exists() or target.is_symlink()
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        text = str(folder)
        shown = text if len(text) < 200 else f"{text[:60]}..."
        raise CheckpointError(f"{shown!r} can't be the place of a new folder ({reason}); choose another one.") from None
    if there:
        raise CheckpointError(f"{target} exists already; choose another folder, or remove it first.")
    return target


def _refused(target: Path, error: OSError) -> CheckpointError:
    if error.errno in (errno.ENOTEMPTY, errno.EEXIST) or target.exists():
        return CheckpointError(
            f"{target} was written by another process in the meantime; that one is left as it is. Choose another "
            "folder, or remove it first."
        )
    name = target.name if len(target.name) < 100 else f"{target.name[:60]}..."
    return CheckpointError(
        f"{target.with_name(name)} can't be written ({error.strerror or error}); nothing was left there. Choose a "
        "folder in a place that exists, can be written to and has room."
    )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a lock in a folder that is being written; it ends with the process, however that ends."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with (folder / f"{_LOCK}ing").open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        lock = Path(file.name).rename(folder / _LOCK)  # others look only for a lock that is held already
        yield
        lock.unlink()


def _clear(parent: Path) -> None:
    """Remove what killed processes left here."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    for lock in parent.glob(f"{_PREFIX}*/{_LOCK}"):
        try:
            with lock.open("rb+") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent, ignore_errors=True)
        except OSError:
            continue  # it is being written, or not ours


def _umask() -> int:
    """The process's mask of permissions, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
