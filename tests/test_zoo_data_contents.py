"""Data are what their hash says: files written anew are read anew, whatever their size and time stamp say."""

import os
import subprocess
import sys

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as Picture
from own_helpers import classifier, save_base, save_tokenizer
from PIL import Image

import fusionlib as fl
from fusionlib.core import CheckpointError, ParameterError
from fusionlib.zoo import inputs, rows
from fusionlib.zoo.files import hash_file
from fusionlib.zoo.inputs import Preprocess
from fusionlib.zoo.own_tasks import own_task
from fusionlib.zoo.own_texts import read_texts
from fusionlib.zoo.texts import read_columns

FEATURES = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
SMALL = Preprocess(4, 4, None, 3, (0.5,) * 3, (0.5,) * 3)
STAMP = 1_600_000_000


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSIONLIB_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(inputs, "_kept", inputs.OrderedDict())
    return tmp_path / "home"


def write_texts(path, label):
    """A file of the same size whatever the label, with the same time stamp."""
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = [label] * 8 + [1 - label] * 2
    Dataset.from_dict({"text": ["good film"] * 10, "label": labels}, features=FEATURES).to_parquet(path)
    os.utime(path, (STAMP, STAMP))
    return path


def write_pictures(root, value):
    """Uncompressed pictures: the same size whatever their grey."""
    for name in ("a", "b"):
        folder = root / "test" / name
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (value,) * 3).save(folder / "0.bmp")
        os.utime(folder / "0.bmp", (STAMP, STAMP))
    return root


def same_stamp(path):
    stamp = path.stat()
    return stamp.st_size, stamp.st_mtime


def test_a_file_written_anew_is_read_anew(tmp_path):
    path = tmp_path / "test.parquet"
    seen = []
    for label in (0, 1, 0):
        task = own_task("films", write_texts(path, label))
        seen.append((same_stamp(path), sum(read_columns(task, "test")[1].tolist()), task.split("test").sha256))
    assert seen[0][0] == seen[1][0], "the case needs files that look the same"
    assert [total for _, total, _ in seen] == [2, 8, 2]
    assert seen[0][2] == seen[2][2] != seen[1][2]


@pytest.mark.parametrize("limit", [rows.IN_MEMORY, 0], ids=["in memory", "from a copy"])
def test_another_process_reads_it_anew(tmp_path, limit):
    path = tmp_path / "test.parquet"
    code = (
        "import sys; from fusionlib.zoo import rows; from fusionlib.zoo.own_tasks import own_task\n"
        f"rows.IN_MEMORY = {limit}\n"
        "task = own_task('films', sys.argv[1]); print(sum(task.dataset('test')['label']), task.split('test').sha256)"
    )
    found = []
    for label in (0, 1):
        write_texts(path, label)
        done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        found.append(done.stdout.split())
    assert [total for total, _ in found] == ["2", "8"] and found[0][1] != found[1][1]


@pytest.mark.parametrize("limit", [rows.IN_MEMORY, 0], ids=["in memory", "from a copy"])
def test_a_file_that_changes_after_the_hash_is_an_error(tmp_path, limit, monkeypatch):
    monkeypatch.setattr(rows, "IN_MEMORY", limit)
    path = tmp_path / "test.parquet"
    split = own_task("films", write_texts(path, 0)).split("test")
    rows.read_rows.cache_clear()
    write_texts(path, 1)
    if limit == 0:  # the copy was made of the contents that were hashed, and is still what it was
        assert sum(rows.read_rows(split.builder, split.files, split.hashes)["label"]) == 2
        (tmp_path / "home").rename(tmp_path / "other")
        rows.read_rows.cache_clear()
    with pytest.raises(CheckpointError, match=r"test.parquet is not what it was.*Load the suite again"):
        rows.read_rows(split.builder, split.files, split.hashes)


def test_pictures_written_anew_are_read_anew(tmp_path):
    seen = []
    for value in (10, 200):
        task = own_task("shades", write_pictures(tmp_path / "data", value))
        seen.append(next(inputs.pixels(task, "test", SMALL))[0].unique().tolist())
    assert seen == [[10], [200]]


def test_a_picture_that_changes_after_the_hash_is_an_error(tmp_path):
    task = own_task("shades", write_pictures(tmp_path / "data", 10))
    write_pictures(tmp_path / "data", 200)
    with pytest.raises(CheckpointError, match=r"0\.bmp.*is not what it was when the suite was loaded"):
        next(inputs.pixels(task, "test", SMALL))


def test_the_counts_of_a_run_are_of_the_file_as_it_is(tmp_path):
    save_base(tmp_path / "base", "bert")
    classifier("bert", 1, names=["no", "yes"]).save_pretrained(tmp_path / "tuned")
    entry = {"films": {"data": tmp_path / "test.parquet", "checkpoint": tmp_path / "tuned"}}
    counts, keys = [], []
    for label in (0, 1):
        write_texts(tmp_path / "test.parquet", label)
        suite = fl.load_suite(tmp_path / "base", entry, device="cpu")
        record = fl.run("simple_average", suite)
        counts.append(record.counts["films"][0])
        keys.append(record.key)
    assert sorted(counts) == [2, 8] and keys[0] != keys[1], "every text is the same, so one class is found in all"


def test_a_tokenizer_written_anew_is_read_anew(tmp_path):
    config = classifier("bert", 0).config
    save_tokenizer(tmp_path, "gpt2")
    first = read_texts(tmp_path, config)
    plain = first.encode(["good film"])[0]
    save_tokenizer(tmp_path, "bert")
    second = read_texts(tmp_path, config)
    assert len(plain) == 2 and len(second.encode(["good film"])[0]) == 4


def test_an_arrow_copy_is_checked(tmp_path, monkeypatch, home):
    monkeypatch.setattr(rows, "IN_MEMORY", 0)
    split = own_task("films", write_texts(tmp_path / "test.parquet", 0)).split("test")
    (copy,) = (home / "cache" / "datasets").rglob("*.arrow")
    content = bytearray(copy.read_bytes())
    content[len(content) // 2] ^= 1
    copy.write_bytes(content)
    rows.read_rows.cache_clear()
    with pytest.raises(CheckpointError, match=r"a copy of .*test.parquet, has been damaged.*Delete this folder"):
        rows.read_rows(split.builder, split.files, split.hashes)


def test_every_bit_of_kept_pictures_counts(tmp_path, home):
    task = own_task("shades", write_pictures(tmp_path / "data", 10))
    whole = next(inputs.pixels(task, "test", SMALL))[0]
    (path,) = (home / "cache" / "inputs").iterdir()
    content = path.read_bytes()
    noticed = 0
    for position in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        inputs._kept.clear()
        try:
            again = next(inputs.pixels(task, "test", SMALL))[0]
        except CheckpointError as error:
            assert path.name in str(error) and "Delete the file" in str(error)
            noticed += 1
        else:
            assert torch.equal(again, whole), f"the bit at {position} was changed, and not noticed"
    assert noticed > len(content) // 10


def test_files_of_one_split_must_agree(tmp_path):
    write_texts(tmp_path / "test-0.parquet", 0)
    other = Features({"text": Value("string"), "label": ClassLabel(names=["yes", "no"])})
    Dataset.from_dict({"text": ["a"], "label": [0]}, features=other).to_parquet(tmp_path / "test-1.parquet")
    with pytest.raises(ParameterError, match=r"test-0.parquet and .*test-1.parquet.*class names differ"):
        own_task("films", tmp_path)


def test_hashes_are_of_the_files(tmp_path):
    path = write_texts(tmp_path / "test.parquet", 0)
    assert own_task("films", path).split("test").hashes == (hash_file(path),)


def test_a_picture_column_of_a_mode_keeps_it(tmp_path):
    content = tmp_path / "red.png"
    Image.new("RGB", (4, 4), (255, 0, 0)).save(content)
    features = Features({"image": Picture(mode="L"), "label": ClassLabel(names=["a"])})
    cells = [{"bytes": content.read_bytes(), "path": None}]
    Dataset.from_dict({"image": cells, "label": [0]}, features=features).to_parquet(tmp_path / "test.parquet")
    pixels = next(inputs.pixels(own_task("red", tmp_path / "test.parquet"), "test", SMALL))[0]
    assert pixels.unique().tolist() == [76], "the grey of pure red: 0.299 of 255"
