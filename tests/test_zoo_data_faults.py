"""Damaged, mistaken and odd data: a sentence that names task and file, or the right rows; never anything else."""

import io
import os
import random
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as Picture
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fusionlib.core import CheckpointError, FusionError, ParameterError
from fusionlib.zoo import inputs
from fusionlib.zoo.inputs import Preprocess
from fusionlib.zoo.own_tasks import own_task
from fusionlib.zoo.pictures import rgb
from fusionlib.zoo.texts import read_columns

NAMES = ["bad", "good"]
LABEL = ClassLabel(names=NAMES)
SMALL = Preprocess(8, 8, None, 3, (0.5,) * 3, (0.5,) * 3)
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


def arrow_file(table):
    stream = io.BytesIO()
    pq.write_table(table, stream)
    return stream.getvalue()


def read(path):
    """All that is read of a task's test split: its labels; FusionError."""
    task = own_task("films", path)
    if task.modality == "text":
        return read_columns(task, "test")[1].tolist()
    return [label for _, labels in inputs.pixels(task, "test", SMALL) for label in labels.tolist()]


def refused(path, *words):
    """The sentence with which the data are refused: it names the task, and has these words."""
    with pytest.raises(FusionError) as caught:
        read(path)
    message = str(caught.value)
    assert "'films'" in message and message.endswith("."), message
    for word in words:
        assert re.search(word, message), (word, message)
    return message


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


# --- pictures ----------------------------------------------------------------------------------------------------

GRID = np.random.default_rng(0).integers(0, 255, (9, 10, 3), dtype=np.uint8)
RGB = Image.fromarray(GRID)


def saved(picture, kind, **options):
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def bomb():
    """A picture of a few hundred kilobytes that says it has 400 million pixels."""
    return saved(Image.new("1", (20_000, 20_000)), "png")


PNG = saved(RGB, "png")
JPEG = saved(RGB, "jpeg")
BAD_PICTURES = {
    "empty": (b"", "no picture.*no known format"),
    "html": (b"<html>404</html>", "no known format"),
    "text": (b"not a picture", "no known format"),
    "zeros": (bytes(400), "no known format"),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\n", "no known format"),
    "only png's magic": (PNG[:8], "no picture that can be read"),
    "png's header alone": (PNG[:33], "no picture that can be read"),
    "png, 60 bytes": (PNG[:60], "truncated"),
    "png, half": (PNG[: len(PNG) // 2], "truncated"),
    "jpeg, 20 bytes": (JPEG[:20], "no picture that can be read"),
    "jpeg, half": (JPEG[: len(JPEG) // 2], "no picture that can be read"),
    "gif, half": (saved(RGB, "gif")[:100], "no picture that can be read"),
    "webp, half": (saved(RGB, "webp")[:60], "no picture that can be read"),
    "tiff, half": (saved(RGB, "tiff")[:100], "no picture that can be read"),
    "bmp, half": (saved(RGB, "bmp")[:100], "truncated"),
    "bomb": (bomb(), "decompression bomb"),
    "a program for ghostscript": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
        "no known format",
    ),
    "floats below 1": (saved(Image.fromarray(GRID[..., 0].astype("f4") / 255), "tiff"), "which of them are black"),
    "floats, NaN": (saved(Image.fromarray(np.full((4, 4), np.nan, "f4")), "tiff"), "which of them are black"),
    "32 bits": (saved(Image.fromarray(GRID[..., 0].astype("i4") * 99999), "tiff"), "which of them are black"),
    "too long and thin": (saved(Image.new("1", (1, 60_000)), "png"), None),
}


def folder_of(root, content, name="0.png"):
    for kind in ("a", "b"):
        (root / "test" / kind).mkdir(parents=True)
        (root / "test" / kind / "1.png").write_bytes(PNG)
    (root / "test" / "a" / name).write_bytes(content)
    return root


def parquet_of(path, cells):
    features = Features({"image": Picture(), "label": LABEL})
    Dataset.from_dict({"image": cells, "label": [0] * len(cells)}, features=features).to_parquet(path)
    return path


@pytest.mark.parametrize("name", BAD_PICTURES)
def test_bad_pictures(tmp_path, name, monkeypatch):
    content, words = BAD_PICTURES[name]
    if words is None:
        monkeypatch.setattr("test_zoo_data_faults.SMALL", Preprocess(8, 8, 8000, 3, (0.5,) * 3, (0.5,) * 3))
        words = "1 x 60000 pixels.*too long"
    refused(folder_of(tmp_path / "folder", content), words, re.escape("0.png"))
    cells = [{"bytes": PNG, "path": None}, {"bytes": content, "path": None}]
    refused(parquet_of(tmp_path / "test.parquet", cells), words, "row 1 of .*test.parquet")


GOOD_PICTURES = {
    "rgb": (RGB, "png"),
    "rgba": (RGB.convert("RGBA"), "png"),
    "palette": (RGB.convert("P"), "png"),
    "palette, transparent": (RGB.convert("P"), "gif"),
    "grey": (RGB.convert("L"), "png"),
    "grey and alpha": (RGB.convert("LA"), "png"),
    "cmyk": (RGB.convert("CMYK"), "tiff"),
    "ycbcr": (RGB, "jpeg"),
    "cmyk jpeg": (RGB.convert("CMYK"), "jpeg"),
    "black and white": (RGB.convert("1"), "png"),
    "16 bits": (Image.fromarray(GRID[..., 0].astype(np.uint16) * 256), "png"),
    "32 bits": (Image.fromarray(GRID[..., 0].astype("i4")), "tiff"),
    "floats to 255": (Image.fromarray(GRID[..., 0].astype("f4")), "tiff"),
    "webp": (RGB, "webp"),
    "bmp": (RGB, "bmp"),
    "ppm": (RGB, "ppm"),
    "one pixel": (RGB.resize((1, 1)), "png"),
    "one row": (RGB.resize((50, 1)), "png"),
}


@pytest.mark.parametrize("name", GOOD_PICTURES)
def test_pictures_of_all_modes(tmp_path, name):
    picture, kind = GOOD_PICTURES[name]
    content = saved(picture, kind)
    task = own_task("films", folder_of(tmp_path, content, f"0.{kind}"))
    images, _ = next(inputs.pixels(task, "test", SMALL))
    where = [file.endswith(f"a/0.{kind}") for file in task.split("test").files].index(True)
    found = images[task.split("test").rows.index(where)]
    with Image.open(io.BytesIO(content)) as opened:
        expected = SMALL.pixels(opened.convert("RGB"))
    assert found.tolist() == expected.tolist()


def test_16_bits_of_either_byte_order_are_the_same():
    values = GRID[..., 0].astype(np.uint16)
    little = Image.fromarray(values)
    big = Image.frombytes("I;16B", little.size, values.astype(">u2").tobytes())
    assert rgb(saved(little, "tiff")).tobytes() == rgb(saved(big, "tiff")).tobytes()


def test_an_animation_is_its_first_frame():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    found = rgb(saved(frames[0], "gif", save_all=True, append_images=frames[1:]))
    assert found.getpixel((0, 0)) == (255, 0, 0)


def test_pictures_are_turned_upright():
    """Orientation 6: the camera lay on its side, so the stored left edge is the top."""
    picture = Image.new("RGB", (4, 2), "white")
    picture.putpixel((0, 0), (0, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    found = rgb(saved(picture, "png", exif=exif))
    assert found.size == (2, 4) and found.getpixel((1, 0)) == (0, 0, 0)


def test_transparent_palettes_give_no_warning():
    picture = RGB.convert("P")
    content = saved(picture, "png", transparency=bytes(range(256)))
    assert rgb(content).tobytes() == picture.convert("RGB").tobytes()


def test_cells_without_a_picture(tmp_path):
    (tmp_path / "secret.png").write_bytes(PNG)
    cells = [{"bytes": PNG, "path": None}, None]
    refused(parquet_of(tmp_path / "test.parquet", cells), "row 1 of .*holds no picture", "to_parquet")
    label = pa.array([0, 0])
    paths = pa.array([{"bytes": None, "path": str(tmp_path / "secret.png")}] * 2)
    made = pa.table({"image": paths, "label": label})
    schema = Features({"image": Picture(), "label": LABEL}).arrow_schema
    (tmp_path / "test.parquet").write_bytes(arrow_file(made.cast(schema).replace_schema_metadata(schema.metadata)))
    refused(tmp_path / "test.parquet", r"row \d of .*holds only a path")


def test_folders_of_pictures_that_are_none(tmp_path):
    (folder_of(tmp_path / "one", PNG) / "test" / "a" / "2.png").mkdir()
    refused(tmp_path / "one", "2.png .*is a folder, though it is called like a picture")
    (folder_of(tmp_path / "two", PNG) / "test" / "b" / "2.png").symlink_to("gone.png")
    refused(tmp_path / "two", "2.png is a link to nothing")
    shutil.copy(folder_of(tmp_path / "three", PNG) / "test" / "a" / "1.png", tmp_path / "three" / "test" / "2.png")
    refused(tmp_path / "three", "2.png .*lies in no folder of a class")
    refused(folder_of(tmp_path / "four", b"", "3.heic"), "3.heic .*can't be read here.*PNG or JPEG")
    for name in (".DS_Store", "Thumbs.db", "._0.png", "notes.txt"):
        folder_of(tmp_path / f"good{name}", b"x", name)
        assert len(read(tmp_path / f"good{name}")) == 2


def test_linked_folders_are_read(tmp_path):
    folder_of(tmp_path / "real", PNG)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "test").symlink_to(tmp_path / "real" / "test")
    (tmp_path / "data" / "train").symlink_to(tmp_path / "real" / "test")
    (tmp_path / "real" / "test" / "a" / "round").symlink_to(tmp_path / "real")
    task = own_task("films", tmp_path / "data")
    assert [task.num_examples(split) for split in ("train", "val", "test")] == [2, 1, 3]


def test_examples_that_are_not_there(tmp_path):
    task = own_task("films", folder_of(tmp_path, PNG))
    for index in (3, -1, 5000):
        with pytest.raises(IndexError, match=rf"has no example {index}, only 0 to 2"):
            inputs.examples(task, "test", SMALL, [0, index])


def test_damaged_pictures_never_end_in_a_traceback(tmp_path, record_property):
    chance, refused_count = random.Random(0), 0
    kinds = [saved(RGB, kind) for kind in ("png", "jpeg", "gif", "tiff", "webp", "bmp")]
    for number in range(120):
        content = bytearray(kinds[number % len(kinds)])
        if number % 2:
            content = content[: chance.randrange(len(content))]
        else:
            for _ in range(4):
                content[chance.randrange(min(len(content), 120))] ^= 1 << chance.randrange(8)
        shutil.rmtree(tmp_path / "data", ignore_errors=True)
        try:
            assert len(read(folder_of(tmp_path / "data", content))) == 3
        except CheckpointError as error:
            assert "0.png of task 'films' holds no picture that can be read" in str(error)
            refused_count += 1
    record_property("120 damaged pictures, refused", refused_count)
    assert refused_count >= 50


def test_both_kinds_of_error_are_the_librarys_own():
    assert issubclass(CheckpointError, FusionError) and issubclass(ParameterError, FusionError)
