"""The hash of the source that a record's counts depend on."""

from pathlib import Path

import pytest

from fusionlib.bench import provenance


def test_a_source_hash_covers_what_a_method_imports():
    names = provenance._shared_imports(
        "from fusionlib.ops.trim import global_trim\nfrom fusionlib.core import Record\n"
    )
    assert names[0] == "ops/trim" and "core" in names and "ops/streaming" not in names
    everything = provenance._shared_imports("import fusionlib as fl\n")
    assert {"ops/trim", "ops/modules", "ops/thresholds"} <= set(everything)


@pytest.mark.parametrize("file", ["evaluate.py", "members.py", "meters.py", "dense_meters.py"])
def test_a_source_hash_covers_how_answers_are_counted(monkeypatch, file):
    before, read = provenance._hash_with_shared(["x = 1"]), Path.read_text

    def changed(path, **how):
        return read(path, **how) + "# changed" * (path.name == file)

    monkeypatch.setattr(Path, "read_text", changed)
    assert provenance._hash_with_shared(["x = 1"]) != before
