"""Which files of a data set's repository hold a split: as its card says, else by their names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fusionlib.core import CheckpointError

BUILDERS = {".parquet": "parquet", ".tar": "webdataset"}


def wanted_data(name: str, paths: Sequence[str], card: Path | None, config: str | None, split: str) -> list[str]:
    """The files of one split.

    Args:
        name: of the repository, for messages.
        paths: of all its files.
        card: its README.md, if it has one.
        config: of its configurations; None takes the default one.
        split: its name on the hub.

    Raises: CheckpointError, if there are none, or they are of a kind that can't be read.
    """
    patterns = _patterns(card, config, split)
    if patterns:
        from huggingface_hub.utils import filter_repo_objects

        chosen = list(filter_repo_objects(paths, allow_patterns=patterns))
    else:
        word = re.compile(rf"(^|[/._ -]){re.escape(split)}([/._ -]|$)")
        chosen = [
            path for path in paths if word.search(path) and (config is None or f"/{path}".find(f"/{config}/") >= 0)
        ]
    readable = [path for path in chosen if Path(path).suffix in BUILDERS]
    if not readable:
        kinds = ", ".join(sorted({Path(path).suffix or path for path in paths})) or "none"
        raise CheckpointError(
            f"the data set {name} has no files of split {split!r}{f' of {config!r}' if config else ''} that can be "
            f"read: {' or '.join(BUILDERS)} is needed, its files are of the kinds {kinds}. If the data set has "
            "changed, pin an older revision of it (owner/name@commit), or give its folder as your own task."
        )
    return readable


def builder_of(paths: Sequence[Path]) -> str:
    """What reads these files, "parquet" or "webdataset"."""
    return BUILDERS[paths[0].suffix]


def _patterns(card: Path | None, config: str | None, split: str) -> list[str]:
    """What the card's header says of a split: patterns of paths, none if it says nothing."""
    for entry in _configs(card, config):
        files: Any = entry.get("data_files")
        if isinstance(files, Mapping):
            files = [{"split": key, "path": value} for key, value in files.items()]
        for part in files if isinstance(files, list) else ():
            if isinstance(part, Mapping) and part.get("split") == split:
                path = part["path"]
                return [path] if isinstance(path, str) else list(path)
    return []


def _configs(card: Path | None, config: str | None) -> list[Mapping[str, Any]]:
    """The entry of a configuration, or, if none is named, the default one first and then the others."""
    import yaml

    header = re.match(r"---\s*\n(.*?)\n---", card.read_text(encoding="utf-8"), re.DOTALL) if card else None
    if header is None:
        return []
    entries = (yaml.safe_load(header[1]) or {}).get("configs") or []
    if config is not None:
        return [entry for entry in entries if entry.get("config_name") == config]
    return sorted(entries, key=lambda entry: not (entry.get("default") or entry.get("config_name") == "default"))
