"""The rows in a task's files, of contents whose hash is known: what was hashed is what is read, or it is an error."""

from __future__ import annotations

import functools
import glob
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusionlib.core import CheckpointError, ParameterError
from fusionlib.zoo.files import hash_file, home, write_atomically, writing

if TYPE_CHECKING:
    from datasets import Dataset

IN_MEMORY = 32 << 20  # bytes of a split's Parquet files; larger ones, and tar files, are read from an Arrow copy
COLUMNS = ("image", "text", "text_a", "text_b", "label")
_SUMS = "checksums.json"


@functools.lru_cache(maxsize=64)
def read_rows(builder: str, files: tuple[str, ...], hashes: tuple[str, ...]) -> Dataset:
    """All rows of local files; nothing is asked of the network.

    The contents decide, not names and time stamps: a file that was written anew is another entry of this cache.

    Args:
        builder: "parquet" or "webdataset" (tar files), whose Arrow copies, where they are large, live under
            ``home()/cache``; or "imagefolder", whose labels are the names of the pictures' folders, sorted.
        files: absolute paths.
        hashes: the SHA-256 of each.

    Raises: CheckpointError, naming the file that is missing, damaged, or not of these contents any more.
    """
    if builder == "imagefolder":
        from datasets import ClassLabel, Dataset, Features, Image

        folders = [Path(file).parent.name for file in files]
        features = Features({"image": Image(), "label": ClassLabel(names=sorted(set(folders)))})
        return Dataset.from_dict({"image": list(files), "label": folders}, features=features)
    if builder == "parquet" and sum(_size(file) for file in files) <= IN_MEMORY:
        return _in_memory(files, hashes)
    return _copied(builder, files, hashes)


def read_bytes(file: str | Path, sha256: str) -> bytes:
    """The contents of a file that has this hash; else CheckpointError."""
    try:
        content = Path(file).read_bytes()
    except OSError as error:
        raise _unreadable(file, error) from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise _changed(file)
    return content


def hash_data(file: str | Path) -> str:
    """SHA-256 of a file of a user's data; CheckpointError, if it is no file or can't be read."""
    path = Path(file)
    try:
        if not path.is_file():  # opening a pipe would wait for ever
            kind = "a folder" if path.is_dir() else "a link to nothing" if path.is_symlink() else "no regular file"
            raise CheckpointError(f"{path} is {kind}. Put the file itself there, or take this name away.")
        return hash_file(path)
    except CheckpointError:
        raise
    except OSError as error:
        raise _unreadable(file, error) from error


def place(builder: str, files: Sequence[str], row: int) -> str:
    """Where a row is, for messages: its file, and its number there, counted from 0."""
    if builder in ("imagefolder", "npy"):
        return files[row]
    from pyarrow.parquet import read_metadata

    for file in files if builder == "parquet" else ():
        count = read_metadata(file).num_rows
        if row < count:
            return f"row {row} of {file}"
        row -= count
    return f"row {row} of {files[0]}"


def parquet_schema(file: str | Path) -> tuple[int, Any]:
    """(number of rows, Arrow schema) of a Parquet file, from its end alone; CheckpointError, if it is none."""
    from pyarrow.parquet import ParquetFile

    with _reading(file), ParquetFile(file) as parquet:
        return parquet.metadata.num_rows, parquet.schema_arrow


def _in_memory(files: tuple[str, ...], hashes: tuple[str, ...]) -> Dataset:
    from datasets import Dataset, concatenate_datasets

    parts = []
    for file, sha256 in zip(files, hashes, strict=True):
        table = _table(file, read_bytes(file, sha256))
        with _reading(file):
            parts.append(Dataset(table, fingerprint=sha256[:16]))
        if parts[-1].features != parts[0].features:
            raise _differing(files[0], file)
    return concatenate_datasets(parts) if len(parts) > 1 else parts[0]


def _table(file: str, content: bytes) -> Any:
    """The columns of a Parquet file that ``datasets`` knows a type for."""
    from pyarrow import BufferReader
    from pyarrow.parquet import ParquetFile

    with _reading(file):
        parquet = ParquetFile(BufferReader(content), page_checksum_verification=True)
        table = parquet.read(_known_columns(file, parquet.schema_arrow))
        table.validate()
        return table


def _known_columns(file: str, schema: Any) -> list[str]:
    """Names of ours, and of what else ``datasets`` can represent: a strange column that nobody asks for is no fault."""
    import pyarrow
    from datasets import Features

    twice = sorted({name for name in schema.names if name in COLUMNS and schema.names.count(name) > 1})
    if twice:
        raise ParameterError(f"{file} has more than one column {twice[0]!r}. Rename or drop all but one.")
    found = []
    for field in schema:
        try:
            Features.from_arrow_schema(pyarrow.schema([field]))
        except (ValueError, NotImplementedError, TypeError):
            if field.name in COLUMNS:
                raise
            continue
        if schema.names.count(field.name) == 1:
            found.append(field.name)
    return found


def _copied(builder: str, files: tuple[str, ...], hashes: tuple[str, ...]) -> Dataset:
    """From an Arrow copy below the home, which is not held in memory; made at first use, and checked at every other."""
    from datasets import Dataset, concatenate_datasets
    from filelock import FileLock

    content = "\n".join((builder, *hashes)).encode()
    folder = home() / "cache" / "datasets" / hashlib.sha256(content).hexdigest()[:32]
    sums = folder / _SUMS
    if not sums.is_file():
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.with_name(f"{folder.name}.lock")):
                if not sums.is_file():
                    _copy(builder, files, hashes, folder)
    try:
        expected: dict[str, str] = json.loads(sums.read_text(encoding="utf-8"))
        if any(hash_file(folder / name) != sha256 for name, sha256 in expected.items()):
            raise ValueError("a checksum does not fit")
        parts = [Dataset.from_file(str(folder / name)) for name in sorted(expected)]
        return concatenate_datasets(parts) if len(parts) > 1 else parts[0]
    except (OSError, ValueError, AttributeError, IndexError) as error:
        raise CheckpointError(
            f"{folder}, a copy of {files[0]}, has been damaged ({error}). Delete this folder: it is made again."
        ) from error


def _copy(builder: str, files: tuple[str, ...], hashes: tuple[str, ...], folder: Path) -> None:
    from datasets.packaged_modules.parquet.parquet import Parquet
    from datasets.packaged_modules.webdataset.webdataset import WebDataset

    before = [_signature(file) for file in files]
    for file, sha256 in zip(files, hashes, strict=True):
        if hash_data(file) != sha256:
            raise _changed(file)
    # what load_dataset reads with; load_dataset itself would report to the hub that it was called
    options: dict[str, Any] = {"cache_dir": str(folder), "hash": "local"}
    options["data_files"] = {"data": [glob.escape(file) for file in files]}
    if builder == "parquet":
        schemas = [parquet_schema(file)[1] for file in files]
        for file, schema in zip(files, schemas, strict=True):
            if _features(file, schema) != _features(files[0], schemas[0]):
                raise _differing(files[0], file)
        reader = Parquet(**options, columns=_known_columns(files[0], schemas[0]))
    else:
        reader = WebDataset(**options)
    try:
        with _quiet():
            reader.download_and_prepare()
    except Exception as error:
        if _of_writing(error):
            raise  # a full disk, say
        raise _unreadable(files[0] if len(files) == 1 else f"{files[0]} or a file beside it", error) from error
    if [_signature(file) for file in files] != before:
        raise _changed(files[0])
    written = {path.relative_to(folder).as_posix(): hash_file(path) for path in sorted(folder.rglob("*.arrow"))}
    write_atomically(folder / _SUMS, lambda temporary: temporary.write_text(json.dumps(written), encoding="utf-8"))


def _features(file: str, schema: Any) -> Any:
    from datasets import Features

    with _reading(file):
        features = Features.from_arrow_schema(schema)
    return {name: features[name] for name in COLUMNS if name in features}


def _signature(file: str) -> tuple[int, ...]:
    found = os.stat(file)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _size(file: str) -> int:
    try:
        return os.stat(file).st_size
    except OSError as error:
        raise _unreadable(file, error) from error


@contextmanager
def _reading(file: str | Path) -> Iterator[None]:
    """Whatever is said of a damaged file becomes a CheckpointError."""
    try:
        yield
    except (CheckpointError, ParameterError):
        raise
    except Exception as error:  # damaged files make Arrow and datasets raise nearly anything
        raise _unreadable(file, error) from error


def _of_writing(error: BaseException | None) -> bool:
    """Whether the system said it, of the copy that is written: Arrow's errors of damaged files have no number."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return True
        error = error.__cause__
    return False


def _unreadable(file: str | Path, error: BaseException) -> CheckpointError:
    while error.__cause__ is not None:
        error = error.__cause__
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return CheckpointError(f"{file} can't be read ({reason}). Copy or make it again.")


def _changed(file: str | Path) -> CheckpointError:
    return CheckpointError(
        f"{file} is not what it was when the suite was loaded: its contents have another hash now. Load the suite "
        "again; if this comes back, something is still writing there."
    )


def _differing(first: str, other: str) -> ParameterError:
    return ParameterError(
        f"{first} and {other} are of one split, but their columns or class names differ. Write them anew from one "
        "datasets.Dataset."
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars of ``datasets``, which flash by for small files; the user's choice comes back."""
    from datasets.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

    enabled = is_progress_bar_enabled()
    disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            enable_progress_bar()
