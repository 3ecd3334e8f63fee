"""Damaged, mistaken and odd data: a sentence that names task and file, or the right rows; never anything else."""

import io
import os
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_helpers import LABEL, arrow_file, read, refused
from datasets import ClassLabel, Dataset, Features, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from fusionlib.core import FusionError
from fusionlib.zoo import inputs
from fusionlib.zoo.own_tasks import own_task
from fusionlib.zoo.texts import read_columns

ROWS = 12


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSIONLIB_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(inputs, "_kept", inputs.OrderedDict())


def table(labels=None, texts=None, label=LABEL, text=None):
    text = text or Value("string")
    labels = [i % 2 for i in range(ROWS)] if labels is None else labels
    texts = [f"film number {i}" for i in range(len(labels))] if texts is None else texts
    return Dataset.from_dict({"text": texts, "label": labels}, features=Features({"text": text, "label": label}))


def content_of(dataset):
    stream = io.BytesIO()
    dataset.to_parquet(stream)
    return stream.getvalue()


# --- labels ------------------------------------------------------------------------------------------------------

LABELS = [
    ([-1] * ROWS, "no labels: all are -1.*row 0 of .*test.parquet.*validation"),
    ([None] * ROWS, "no labels: all are null"),
    ([2, *[0] * (ROWS - 1)], r"label of row 0 of .*test.parquet is 2.*2 classes \(bad, good\).*0 to 1.*1 of 12"),
    ([*[1] * (ROWS - 1), 99], "row 11 of .*is 99"),
    ([0, -1, 0, -1], "row 1 of .*is -1.*2 of 4"),
    ([0, None, 1], "row 1 of .*is null.*1 of 3"),
    ([-2] * ROWS, "row 0 of .*is -2.*12 of 12"),
    ([], "is empty: it has no rows"),
]


@pytest.mark.parametrize(("labels", "words"), LABELS)
def test_labels_that_are_no_classes(tmp_path, labels, words):
    features = Features({"text": Value("string"), "label": LABEL})
    plain = pa.table({"text": [f"film {i}" for i in range(len(labels))], "label": pa.array(labels, pa.int64())})
    plain = plain.cast(features.arrow_schema).replace_schema_metadata(features.arrow_schema.metadata)
    (tmp_path / "test.parquet").write_bytes(arrow_file(plain))
    refused(tmp_path, words)


@given(st.lists(st.one_of(st.none(), st.integers(-3, 4)), max_size=12), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_exactly_the_labels_of_classes_are_taken(tmp_path_factory, labels, classes):
    path = tmp_path_factory.mktemp("labels") / "test.parquet"
    features = Features({"text": Value("string"), "label": ClassLabel(names=[f"c{i}" for i in range(classes)])})
    plain = pa.table({"text": ["film"] * len(labels), "label": pa.array(labels, pa.int64())})
    path.write_bytes(arrow_file(plain.cast(features.arrow_schema)))
    if labels and all(label is not None and 0 <= label < classes for label in labels):
        assert sorted(read(path)) == sorted(labels)
    else:
        first = next((i for i, x in enumerate(labels) if x is None or not 0 <= x < classes), None)
        refused(
            path, "no labels|no rows" if set(labels) in (set(), {-1}, {None}) else f"row {first} of ", "test.parquet"
        )


@given(st.lists(st.one_of(st.none(), st.text(max_size=6)), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_exactly_the_texts_are_taken(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("texts") / "test.parquet"
    path.write_bytes(content_of(table([0] * len(texts), texts)))
    if None in texts:
        refused(path, f"row {texts.index(None)} of .*test.parquet has no 'text'.*{texts.count(None)} of {len(texts)}")
    elif not any(text.strip() for text in texts):
        refused(path, "all texts .*are empty.*row 0 of .*test.parquet")
    else:
        task = own_task("films", path)
        assert sorted(read_columns(task, "test")[0]["text"]) == sorted(texts)


# --- files -------------------------------------------------------------------------------------------------------


def text_bytes(values):
    """A column that says it holds texts, of these bytes."""
    binary = pa.array(values, pa.binary())
    column = pa.Array.from_buffers(pa.string(), len(values), binary.buffers())
    labels = pa.array([0] * len(values))
    features = Features({"text": Value("string"), "label": LABEL})
    made = pa.table({"text": column, "label": labels})
    return arrow_file(made.replace_schema_metadata(features.arrow_schema.metadata))


def doubled(name):
    made = table().data.table
    columns = [made[each] for each in ("text", "label", name)]
    return arrow_file(pa.Table.from_arrays(columns, names=["text", "label", name], metadata=made.schema.metadata))


GOOD = content_of(table())
INTEGERS = pa.table({"text": ["a"], "label": [1]})
BAD_FILES = {
    "empty file": (b"", "can't be read"),
    "text": (b"text,label\ngood,1\n", "can't be read.*(magic|footer|Parquet)"),
    "json": (b'{"text": "good", "label": 1}\n', "can't be read"),
    "html": (b"<html>404 Not Found</html>", "can't be read"),
    "only the magic": (b"PAR1", "can't be read"),
    "magic twice": (b"PAR1PAR1", "can't be read"),
    "zeros": (bytes(5000), "can't be read"),
    "a git lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n", "can't be read"),
    "beginning cut off": (GOOD[4:], "can't be read"),
    "end cut off": (GOOD[:-4], "can't be read"),
    "half": (GOOD[: len(GOOD) // 2], "can't be read"),
    "footer of huge length": (GOOD[:-8] + b"\xff\xff\xff\x7f" + GOOD[-4:], "can't be read"),
    "footer of no length": (GOOD[:-8] + bytes(4) + GOOD[-4:], "can't be read"),
    "no label": (content_of(table().remove_columns("label")), "no column 'label'.*found text"),
    "no text": (content_of(table().remove_columns("text")), "no column 'image'.*found label"),
    "other name": (content_of(table().rename_column("text", "sentence")), "found sentence, label.*rename_column"),
    "integers without names": (arrow_file(INTEGERS), "'label' of .*int64.*not ClassLabel.*cast_column"),
    "texts as labels": (content_of(table(["bad"] * 3, label=Value("string"))), "not ClassLabel.*class_encode_column"),
    "bools": (content_of(table([True] * 3, label=Value("bool"))), "not ClassLabel.*class_encode_column"),
    "floats": (content_of(table([0.5] * 3, label=Value("float32"))), "float32.*not ClassLabel"),
    "nested labels": (arrow_file(pa.table({"text": ["a"], "label": [[1, 0]]})), "not ClassLabel"),
    "numbers as texts": (content_of(table([0], [3], text=Value("int64"))), "'text' of .*int64, not of texts"),
    "bytes as texts": (content_of(table([0], [b"a"], text=Value("binary"))), "'text' of .*binary, not of texts"),
    "nested texts": (content_of(table([0], [["a"]], text=[Value("string")])), "not of texts"),
    "nulls as texts": (content_of(table([0, 1], [None, None], text=Value("null"))), "null, not of texts"),
    "no UTF-8": (text_bytes([b"good", b"caf\xe9"]), "row 1 of .*is no text in UTF-8"),
    "two columns label": (doubled("label"), "more than one column 'label'"),
    "two columns text": (doubled("text"), "more than one column 'text'"),
    "no classes": (content_of(table([], label=ClassLabel(names=[]))), "is empty"),
    "no columns": (arrow_file(pa.table({})), "no column"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_parquet_files(tmp_path, name):
    content, words = BAD_FILES[name]
    (tmp_path / "test.parquet").write_bytes(content)
    refused(tmp_path / "test.parquet", words, "test.parquet")


def good_files():
    plain = table()
    arrow = plain.data.table
    strange = pa.array([[(f"key{i}", i)] for i in range(ROWS)], pa.map_(pa.string(), pa.int64()))
    large = pa.schema([pa.field("text", pa.large_string()), arrow.schema.field("label")], arrow.schema.metadata)
    words = pa.array(["good film"] * ROWS).dictionary_encode()
    labelled = arrow.schema.metadata
    return {
        "plain": GOOD,
        "small row groups": write(arrow, row_group_size=1),
        "no compression": write(arrow, compression="NONE"),
        "zstd": write(arrow, compression="ZSTD"),
        "with page checksums": write(arrow, write_page_checksum=True),
        "old version": write(arrow, version="1.0"),
        "no dictionary": write(arrow, use_dictionary=False),
        "large strings": write(arrow.cast(large)),
        "texts in a dictionary": write(arrow.set_column(0, "text", words).replace_schema_metadata(labelled)),
        "a strange column": write(arrow.append_column("odd", strange)),
        "further columns": content_of(plain.add_column("id", list(range(ROWS)))),
        "one empty text": content_of(table(texts=["", *["film"] * (ROWS - 1)])),
        "all languages": content_of(table(texts=["\u0444\u0438\u043b\u044c\u043c \U0001f3ac \x00"] * ROWS)),
        "a long text": content_of(table(texts=["word " * 20_000] * ROWS)),
    }


def write(arrow, **options):
    stream = io.BytesIO()
    pq.write_table(arrow, stream, **options)
    return stream.getvalue()


@pytest.mark.parametrize("name", good_files())
def test_good_parquet_files(tmp_path, name):
    (tmp_path / "test.parquet").write_bytes(good_files()[name])
    assert sorted(read(tmp_path)) == [0] * 6 + [1] * 6


def test_random_damage_is_said_or_gives_rows(tmp_path, record_property):
    """A changed byte may be another letter of a text, which is another file; never a traceback, never a wrong label."""
    chance, counts = random.Random(0), {"refused": 0, "another file that can be read": 0}
    path = tmp_path / "test.parquet"
    for number in range(120):
        content = bytearray(write(table().data.table, compression="NONE" if number % 2 else "SNAPPY"))
        if number % 3 == 0:
            content = content[: chance.randrange(len(content))]
        else:
            for _ in range(chance.choice([1, 1, 8])):
                content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(content)
        try:
            labels = read(path)
        except FusionError as error:
            assert "'films'" in str(error) or "columns" in str(error), error
            counts["refused"] += 1
        else:
            assert labels and set(labels) <= {0, 1}
            counts["another file that can be read"] += 1
    for outcome, count in counts.items():
        record_property(f"120 damaged Parquet files, {outcome}", count)
    assert counts["refused"] >= 40, "the cut off ones at least"


# --- folders -----------------------------------------------------------------------------------------------------


def test_things_that_are_no_files(tmp_path):
    (tmp_path / "test.parquet").symlink_to(tmp_path / "gone")
    refused(tmp_path, "test.parquet is a link to nothing")
    refused(tmp_path / "test.parquet", "link to nothing")
    (tmp_path / "test.parquet").unlink()
    os.mkfifo(tmp_path / "test.parquet")
    refused(tmp_path, "test.parquet is no regular file")
    (tmp_path / "data.csv").write_text("text,label\n", encoding="utf-8")
    refused(tmp_path / "data.csv", "no .parquet file and no folder.*load_dataset")
    refused("~nobody-here/data", "no path that can be read|nothing is there")
    refused("x" * 5000, "no path that can be read")
    refused("a\0b", "no path that can be read")


def test_what_systems_leave_behind_is_no_data(tmp_path):
    (tmp_path / "test.parquet").write_bytes(GOOD)
    (tmp_path / "._test.parquet").write_bytes(b"Mac OS X")
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX" / "test.parquet").write_bytes(b"Mac OS X")
    assert len(read(tmp_path)) == ROWS


def test_parts_in_a_folder_that_is_called_like_a_file(tmp_path):
    folder = tmp_path / "test.parquet"
    folder.mkdir()
    (folder / "part-00000.snappy.parquet").write_bytes(GOOD)
    (folder / "_SUCCESS").write_bytes(b"")
    assert len(read(tmp_path)) == ROWS


def test_a_train_split_of_one_row_stays_whole(tmp_path):
    (tmp_path / "train.parquet").write_bytes(content_of(table([0])))
    (tmp_path / "test.parquet").write_bytes(GOOD)
    task = own_task("films", tmp_path)
    assert task.num_examples("train") == 1 and "val" not in task.splits
