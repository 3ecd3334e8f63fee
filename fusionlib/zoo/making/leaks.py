"""Which texts pretraining must not see: those that share words in a row with a validation or test text."""

from __future__ import annotations

import re
from pathlib import Path

from fusionlib.core import CheckpointError

RUN = 8  # words in a row that two texts must not have in common
TASKS = ("acceptability", "reviews", "food", "spam", "question", "topic", "entailment", "similarity", "paraphrase")


def words(text: str) -> list[str]:
    """Its words in lower case, without punctuation."""
    return re.sub(r"[^\w]+", " ", re.sub(r"[’']", "", text.lower())).split()


def read_texts(pack: Path, task: str, split: str) -> list[tuple[str, ...]]:
    """The texts of one split of the pack, one or two per example.

    Raises:
        CheckpointError: there is no such file.
    """
    import pyarrow.parquet as pq

    path = pack / f"{task}-{split}.parquet"
    if not path.is_file():
        raise CheckpointError(f"The pack has no file {path}. Give the folder of the Parquet files as --pack FOLDER.")
    table = pq.read_table(path)
    columns = [table[name].to_pylist() for name in ("text", "text_a", "text_b") if name in table.column_names]
    return list(zip(*columns, strict=True))


class Guard:
    """Tells whether a text touches one of those that must stay unseen.

    Args:
        texts: they share no run of :data:`RUN` words with a text that is let through; a text that is shorter than
            that is only compared as a whole.
    """

    def __init__(self, texts: list[str]) -> None:
        self._runs = {run for text in texts for run in _runs(words(text))}

    def touches(self, text: str) -> bool:
        """Whether pretraining must do without this text."""
        return any(run in self._runs for run in _runs(words(text)))


def held_out(pack: Path) -> Guard:
    """The guard of all validation and test texts of the pack, whatever their task."""
    return Guard([
        text for task in TASKS for split in ("val", "test") for row in read_texts(pack, task, split) for text in row
    ])  # fmt: skip


def _runs(found: list[str]) -> list[str]:
    return [" ".join(found[start : start + RUN]) for start in range(max(1, len(found) - RUN + 1))]
