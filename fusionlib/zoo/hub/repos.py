"""Repositories of the hub: which of their files are needed, which are in the local cache, and getting the others."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fusionlib.core import CheckpointError
from fusionlib.zoo.companions import beside
from fusionlib.zoo.hub.data_files import wanted_data
from fusionlib.zoo.hub.retrying import patiently

_SMALL = (".json", ".txt", ".model")  # configurations and tokenizers
_TRAINING = re.compile(r"training_args|optimizer|scheduler|rng_state|scaler")
WEIGHTS = (r"[^/]+\.safetensors", r"[^/]+\.bin")


@dataclass(frozen=True)
class Repo:
    """One repository, and what of it is needed.

    Attributes:
        id: "owner/name", or a bare name of the hub's first years; "@revision" may follow.
        kind: "model" or "dataset".
        config: of a data set that has several.
        splits: of a data set.
        weights: patterns of the files of weights: those wanted, and those to take where there are none.
        companions: of a model, whether templates, code and folders below are wanted too, which travel with a merge.
    """

    id: str
    kind: Literal["model", "dataset"] = "model"
    config: str | None = None
    splits: tuple[str, ...] = ()
    weights: tuple[str, str] = WEIGHTS
    companions: bool = False

    @property
    def name(self) -> str:
        """The id without its revision."""
        return self.id.partition("@")[0]

    @property
    def revision(self) -> str:
        """A branch, a tag or a commit."""
        return self.id.partition("@")[2] or "main"

    def wanted(self, paths: Iterable[str], card: Path | None) -> list[str]:
        """Which of the repository's files are needed.

        Args:
            paths: of all its files.
            card: the local copy of a data set's README.md, which may say where its splits are.

        Raises: CheckpointError, if a data set lacks a split.
        """
        paths = sorted(paths)
        if self.kind == "dataset":
            return [path for path in paths if path == "README.md"] + [
                path for split in self.splits for path in wanted_data(self.id, paths, card, self.config, split)
            ]
        top = [path for path in paths if "/" not in path and not _TRAINING.search(path)]
        best, other = ([path for path in top if re.fullmatch(pattern, path)] for pattern in self.weights)
        small = [path for path in top if path.endswith(_SMALL)]
        return (
            small + (best or other) + ([path for path in beside(paths) if path not in small] if self.companions else [])
        )


@dataclass(frozen=True)
class Found:
    """What the hub says of a repository.

    Attributes:
        commit: its newest, or the one asked for.
        sizes: wanted file -> bytes.
    """

    commit: str
    sizes: dict[str, int]


def ask(repo: Repo) -> Found:
    """Commit, and names and sizes of the files needed; downloads the card of a data set.

    Raises: what huggingface_hub raises; CheckpointError, if a data set lacks a split.
    """
    from huggingface_hub import HfApi, hf_hub_download

    def info() -> Any:
        return HfApi().repo_info(repo.name, repo_type=repo.kind, revision=repo.revision, files_metadata=True)

    found = patiently(info, repo.id)
    commit = found.sha or repo.revision
    sizes = {each.rfilename: each.size or 0 for each in found.siblings or ()}
    card = None
    if repo.kind == "dataset" and "README.md" in sizes:
        card = Path(
            patiently(lambda: hf_hub_download(repo.name, "README.md", repo_type=repo.kind, revision=commit), repo.id)
        )
    return Found(commit, {path: sizes[path] for path in repo.wanted(sizes, card)})


def absent(repo: Repo, found: Found) -> dict[str, int]:
    """File -> bytes of what must be downloaded."""
    from huggingface_hub import try_to_load_from_cache

    def is_cached(path: str) -> bool:
        known = try_to_load_from_cache(repo.name, path, repo_type=repo.kind, revision=found.commit)
        return isinstance(known, str)

    return {path: size for path, size in found.sizes.items() if not is_cached(path)}


def download(repo: Repo, found: Found | None = None) -> Path:
    """The folder with the files needed; what is there already is not fetched again, what is half there is resumed.

    Raises: what huggingface_hub raises after the last attempt.
    """
    from huggingface_hub import snapshot_download

    files = list((found or ask(repo)).sizes)

    def get():
        return snapshot_download(
            repo.name, repo_type=repo.kind, revision=repo.revision, allow_patterns=_literally(files)
        )

    return Path(patiently(get, repo.id))


def cached(repo: Repo) -> Path | None:
    """The folder of the local copy, if all files needed are in it; nothing is asked of the network."""
    from huggingface_hub import get_cached_repo_tree, snapshot_download
    from huggingface_hub.errors import (
        CachedRepoTreeNotFoundError,
        IncompleteSnapshotError,
        LocalEntryNotFoundError,
    )

    kind = repo.kind
    try:
        folder = Path(snapshot_download(repo.name, repo_type=kind, revision=repo.revision, local_files_only=True))
    except IncompleteSnapshotError as error:  # files that are not needed may well be missing
        folder = Path(error.snapshot_path)
    except LocalEntryNotFoundError:
        return None
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    try:
        paths = [each.path for each in get_cached_repo_tree(repo.name, repo_type=kind, revision=repo.revision)]
    except CachedRepoTreeNotFoundError:  # copies that older versions made have no list of what there is
        paths = sorted(there)
    card = folder / "README.md"
    if kind == "dataset" and "README.md" in paths and not card.is_file():
        return None
    try:
        wanted = repo.wanted(paths, card if card.is_file() else None)
    except CheckpointError:
        return None
    return folder if _whole(wanted) and there.issuperset(wanted) else None


def _whole(paths: Sequence[str]) -> bool:
    """Whether there is something, and of every file in parts all parts."""
    series = [match for path in paths if (match := re.search(r"^(.*)-\d{5}-of-(\d{5})\.", path))]
    counts = Counter((match[1], match[2]) for match in series)
    return bool(paths) and all(count == int(total) for (_, total), count in counts.items())


def _literally(paths: Sequence[str]) -> list[str]:
    """Patterns that stand for exactly these paths."""
    return [re.sub(r"([*?\[])", r"[\1]", path) for path in paths]
