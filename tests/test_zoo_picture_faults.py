"""Damaged pictures, and good ones of every mode: what is refused, and what the others become."""

import io
import random
import re
import shutil

import numpy as np
import pyarrow as pa
import pytest
from data_helpers import LABEL, SMALL, arrow_file, read, refused
from datasets import Dataset, Features
from datasets import Image as Picture
from PIL import Image

from fusionlib.core import CheckpointError, FusionError, ParameterError
from fusionlib.zoo import inputs
from fusionlib.zoo.inputs import Preprocess
from fusionlib.zoo.own_tasks import own_task
from fusionlib.zoo.pictures import rgb


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSIONLIB_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(inputs, "_kept", inputs.OrderedDict())


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
        monkeypatch.setattr("data_helpers.SMALL", Preprocess(8, 8, 8000, 3, (0.5,) * 3, (0.5,) * 3))
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
