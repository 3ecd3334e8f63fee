"""The store: append-only lines that survive killed writers, several writers and hand-made edits."""

import dataclasses
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from bench_helpers import stored, toy_suite
from filelock import FileLock

import fusionlib as fl
from fusionlib.bench import records
from fusionlib.core import CheckpointError, ParameterError, UnknownName

APPENDER = """
import sys
from bench_helpers import make_record
from fusionlib.bench import provenance, records
print("ready", flush=True)
sys.stdin.readline()
for index in range(40):
    records.append(make_record(key=f"{sys.argv[1]}-{index}"))
"""


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSIONLIB_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)  # outside of a project, whose committed records would be read too


def store(*made):
    for record in made:
        records.append(record)
    return made


def file():
    (path,) = records.folder().glob("*.jsonl")
    return path


def test_round_trip_of_raw_counts():
    counts = {"b": (7, 9), "a": (1, 3)}
    record = stored(counts=counts, hyperparameters={"scale": [0.1, 0.30000000000000004]}, needs=("labels",))
    store(record)
    line = json.loads(file().read_text())
    assert line["counts"] == {"a": [1, 3], "b": [7, 9]} and line["fusion_seconds"] == 0.5
    assert not any("accuracy" in name or "average" in name for name in line)
    (back,) = records.read()
    assert back == record and list(back.counts) == ["b", "a"]
    assert records.find(record.key, record) == record
    assert records.find("other", record) is None


def test_lines_are_only_added():
    store(stored(key="1"))
    before = file().read_bytes()
    store(stored(key="2"), stored(key="3"))
    assert file().read_bytes().startswith(before) and file().read_text().count("\n") == 3
    assert [record.key for record in records.read()] == ["1", "2", "3"]


def test_a_file_per_suite_with_a_readable_name():
    store(stored(), stored(tuning="lora"), stored(backbone="/models/my clip"), stored(tasks=("b", "a")))
    names = sorted(path.name for path in records.folder().glob("*.jsonl"))
    assert len(names) == 4 and names[0].startswith("my-clip-2-tasks-full-")


def test_a_torn_last_line_is_no_record_and_is_set_aside(caplog):
    store(stored(key="1"))
    with open(file(), "ab") as handle:
        handle.write(b'{"key": "half')
    assert [record.key for record in records.read()] == ["1"]
    store(stored(key="2"))
    assert [json.loads(line)["key"] for line in file().read_text().splitlines()] == ["1", "2"]
    assert [record.key for record in records.read()] == ["1", "2"]
    assert file().with_suffix(".torn").read_text() == '{"key": "half\n'
    assert "a half-written record" in caplog.text


def test_a_torn_only_line():
    store(stored(key="1"))
    file().write_bytes(file().read_bytes()[:-1])
    records._read.clear()
    assert records.read() == []
    store(stored(key="2"))
    assert [record.key for record in records.read()] == ["2"]


def test_several_processes_lose_nothing():
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {here!r})\n{APPENDER}"]
    writers = [
        subprocess.Popen([*command, str(n)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for n in range(2)
    ]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.communicate("go\n", timeout=60)
    assert [writer.returncode for writer in writers] == [0, 0]
    found = [record.key for record in records.read(current=False)]
    assert sorted(found) == sorted(f"{n}-{index}" for n in range(2) for index in range(40))


def test_one_writer_at_a_time():
    store(stored(key="1"))
    writer = threading.Thread(target=store, args=[stored(key="2")])
    with FileLock(f"{file()}.lock"):
        writer.start()
        writer.join(0.2)
        assert writer.is_alive() and len(records.read()) == 1
    writer.join(10)
    assert len(records.read()) == 2


@pytest.mark.parametrize("line", ["{oops", "{}", "[1]", '{"counts": {"a": 1}, "tasks": ["a"]}'])
def test_a_line_edited_by_hand_is_named_and_passed_over(line, caplog):
    store(stored(key="1"), stored(key="2"))
    first, last = file().read_text().splitlines()
    file().write_text(f"{first}\n{line}\n{last}\n")
    for _ in range(2):
        assert [record.key for record in records.read()] == ["1", "2"]
    (told,) = caplog.messages
    assert f"{file()} holds a line that is no record" in told and ": line 2 " in told and "Delete that line" in told
    file().write_text(f"{first}\n{last}\n")
    assert [record.key for record in records.read()] == ["1", "2"] and len(caplog.messages) == 1


def test_many_bad_lines_are_one_line_of_the_log(caplog):
    store(stored(key="1"), stored(key="2"))
    file().write_text("\n".join(["", *file().read_text().replace("80", "81").splitlines(), *"abcdef", ""]))
    assert records.read() == [] and len(caplog.messages) == 1
    assert ": line 1 is not JSON. The same or the like holds for 8 more: 2, 3, 4, 5, 6, ..." in caplog.text


def test_an_edited_file_is_read_anew_whatever_its_length(caplog):
    (record,) = store(stored(key="1"))
    text = file().read_text()
    assert records.read() == [record]
    for changed in (text.replace("[80, 100]", "[8000, 10000]"), text.replace("[80, 100]", "[90, 100]")):
        file().write_text(changed)
        assert changed != text and records.read() == []
    assert [": line 1 was changed after it was written" in told for told in caplog.messages] == [True, True]
    file().write_text(text)
    assert records.read() == [record]


def test_a_record_that_was_changed_is_measured_again(caplog):
    first = fl.run("task_arithmetic", toy_suite())
    line = json.loads(file().read_text())
    line["counts"]["a"][0] += 1
    file().write_text(json.dumps(line) + "\n")
    again = fl.run("task_arithmetic", toy_suite())
    assert again.counts == first.counts and [r.counts for r in records.read()] == [first.counts]
    assert "line 1 was changed after it was written" in caplog.text


def test_one_key_is_stored_once():
    first, *_ = store(stored(key="1"), stored(key="1", fusion_seconds=9.0))
    assert file().read_text().count("\n") == 1 and records.read() == [first]
    assert records.find("1", first) == first


def test_what_another_process_measured_meanwhile_is_not_added(monkeypatch):
    (record,) = store(stored(key="1"))
    monkeypatch.setattr(records, "_read", {})  # what this process knew before
    records.append(dataclasses.replace(record, fusion_seconds=9.0))
    assert file().read_text().count("\n") == 1


def test_a_record_nobody_can_have_measured_is_not_stored():
    with pytest.raises(ParameterError, match=r"'1' of 'task_arithmetic' can't be stored: it has the counts \[5, 4\]"):
        store(stored(key="1", counts={"a": (5, 4)}))
    assert not list(records.folder().glob("*"))


def full(descriptor):
    raise OSError(28, "No space left on device")


def test_a_measurement_outlives_a_disk_that_is_full_by_then(monkeypatch, caplog):
    monkeypatch.setattr(records.os, "fsync", full)
    assert fl.run("task_arithmetic", toy_suite()).counts and records.read() == []
    assert "this measurement is not kept" in caplog.text and "FUSIONLIB_HOME" in caplog.text


def test_a_home_that_cannot_be_written_is_said_before_anything_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr("fusionlib.bench.run.measure_all", lambda *_: pytest.fail("measured"))
    (tmp_path / "home").mkdir()
    records.folder().write_text("a file where the folder should be")
    with pytest.raises(CheckpointError, match=r"can't be written: file exists.* FUSIONLIB_HOME"):
        fl.run("task_arithmetic", toy_suite())
    with pytest.raises(CheckpointError, match=r"can't be written \(.*let FUSIONLIB_HOME name a folder"):
        records.append(stored(key="1"))
    assert records.folder().read_text() == "a file where the folder should be"


def test_a_full_disk_leaves_no_half_line(monkeypatch):
    store(stored(key="1"))
    before = file().read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(records.os, "fsync", full)
        with pytest.raises(CheckpointError, match="No space left on device"):
            records.append(stored(key="2"))
    assert file().read_bytes() == before
    store(stored(key="2"))
    assert [record.key for record in records.read()] == ["1", "2"]


def test_methods_are_listed_once_however_many_records(monkeypatch):
    store(*(stored(key=str(number), hyperparameters={"scale": number / 8}) for number in range(20)))
    listed = []
    monkeypatch.setattr(records.methods, "names", lambda: listed.append(1) or ["task_arithmetic"])
    assert records.comparable(records.read()) == [] and len(listed) <= 3


def test_a_deleted_file_is_measured_again():
    first = fl.run("task_arithmetic", toy_suite())
    assert len(records.read()) == 1
    file().unlink()
    assert records.read() == []
    again = fl.run("task_arithmetic", toy_suite())
    assert again.key == first.key and len(records.read()) == 1


def test_filters():
    made = store(
        stored(),
        stored(split="val"),
        stored(limit=5),
        stored(tuning="lora"),
        stored(backbone="other"),
        stored(tasks=("b", "a")),
    )

    def which(**options):
        return sorted(made.index(record) for record in records.read(**options))

    assert which() == [0, 3, 4, 5]
    assert which(split="val") == [1] and which(limit=5) == [2]
    assert which(tuning="full") == [0, 4, 5] and which(backbone="toy") == [0, 3, 5]
    assert which(tasks=["a", "b"]) == [0, 3, 4] and which(tasks=("b", "a")) == [5] and which(tasks="tiny8") == []
    with pytest.raises(UnknownName, match=r"no set of tasks is called 'tiny9'. Did you mean 'tiny8'\?"):
        records.read(tasks="tiny9")


def test_oldest_first():
    store(*(stored(key=year, provenance={"created": f"{year}-01-01T00:00:00+00:00"}) for year in ("2027", "2025")))
    assert [record.key for record in records.read()] == ["2025", "2027"]


def test_current_is_this_code_and_the_newest_checkpoints():
    later = {"created": "2026-02-01T00:00:00+00:00"}
    store(
        stored(key="edited since", provenance={"source": "old"}),
        stored(key="older checkpoints"),
        stored(key="newer checkpoints", provenance={"suite": "f1", **later}),
        stored(key="another seed", seed=1),
        dataclasses.replace(stored(key="a method that is gone"), method="no_longer_there"),
    )
    assert [record.key for record in records.read()] == ["another seed", "newer checkpoints"]
    assert len(records.read(current=False)) == 5


def test_committed_records_of_a_project(tmp_path, monkeypatch):
    store(stored(key="made elsewhere"))
    committed = tmp_path / "project" / "book" / "records"
    committed.mkdir(parents=True)
    (tmp_path / "project" / "_config.yml").touch()
    file().rename(committed / "gpu.jsonl")
    assert records.read() == []
    monkeypatch.chdir(committed.parent)
    (record,) = records.read()
    assert record.key == "made elsewhere" and record.provenance["origin"] == "committed"
