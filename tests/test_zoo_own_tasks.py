"""A user's own data: Parquet files and imagefolders, their splits, classes and errors."""

import io

import pytest
import torch
from PIL import Image

import fusionlib as fl
from fusionlib.core import CheckpointError, ParameterError
from fusionlib.zoo.own_tasks import own_task

COLOURS = {"blue_ish": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSIONLIB_HOME", str(tmp_path / "home"))


def write_parquet(path, count, names=tuple(COLOURS), **columns):
    """Pictures of one colour each, sorted by class, with the index as the fourth pixel's grey."""
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as Picture

    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = []
    for index in range(count):
        image = Image.new("RGB", (32, 32), list(COLOURS.values())[index * 3 // count])
        image.putpixel((0, 0), (index, index, index))
        stream = io.BytesIO()
        image.save(stream, "png")
        pictures.append({"bytes": stream.getvalue(), "path": None})
    label = [index * 3 // count for index in range(count)]
    features = Features({columns.get("image", "image"): Picture(), "label": ClassLabel(names=list(names))})
    if columns.get("plain"):
        from datasets import Value

        features["label"] = Value("int64")
    values = {columns.get("image", "image"): pictures, "label": label}
    Dataset.from_dict(values, features=features).to_parquet(path)
    return path


def write_pictures(root, split, count, names=tuple(COLOURS)):
    for name in names:
        folder = root / split / name
        folder.mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (40, 32), COLOURS[name]).save(folder / f"{index} [a*].png")


def test_parquet_folder_with_all_splits(tmp_path):
    for split, count in (("train", 30), ("validation", 9), ("test", 12)):
        write_parquet(tmp_path / "own" / "data" / f"{split}-00000-of-00001.parquet", count)
    task = own_task("colours", tmp_path / "own")
    assert [task.num_examples(split) for split in ("train", "val", "test")] == [30, 9, 12]
    assert task.classes == tuple(COLOURS) and task.prompts[0] == "blue ish" and task.note == "" and not task.embedded
    labels = task.dataset("test")["label"][:]
    assert sorted(labels) == [0] * 4 + [1] * 4 + [2] * 4
    assert len(set(labels[:4])) > 1, "a sorted split must be shuffled"
    for row in task.dataset("test"):
        assert row["image"].getpixel((9, 9)) == list(COLOURS.values())[row["label"]]


def test_val_is_carved_from_train_and_said(tmp_path):
    write_parquet(tmp_path / "own-train.parquet", 40)
    write_parquet(tmp_path / "own-test.parquet", 6)
    task = own_task("colours", tmp_path)
    assert [task.num_examples(split) for split in ("train", "val", "test")] == [36, 4, 6]
    assert "tenth of train (4 of 40 examples" in task.note
    index = {split: [row["image"].getpixel((0, 0))[0] for row in task.dataset(split)] for split in ("train", "val")}
    assert sorted(index["train"] + index["val"]) == list(range(40))
    assert own_task("colours", tmp_path).splits == task.splits


def test_one_file_is_the_test_split(tmp_path):
    path = write_parquet(tmp_path / "colours.parquet", 6)
    task = own_task("colours", path)
    assert list(task.splits) == ["test"]
    with pytest.raises(ParameterError, match=r"task 'colours' has no split 'val'. Allowed: test"):
        task.dataset("val")
    with pytest.raises(ParameterError, match=r"has no test split in .*found train"):
        own_task("colours", path.rename(tmp_path / "train.parquet"))


def test_imagefolder(tmp_path):
    write_pictures(tmp_path, "train", 10)
    write_pictures(tmp_path, "test", 2)
    task = own_task("colours", tmp_path)
    assert task.classes == tuple(COLOURS)
    assert [task.num_examples(split) for split in ("train", "val", "test")] == [27, 3, 6]
    for row in task.dataset("train"):
        assert row["image"].getpixel((3, 3)) == list(COLOURS.values())[row["label"]]


def test_suite_of_own_data(tmp_path):
    write_pictures(tmp_path / "data", "test", 2)
    weight = torch.randn(3, 384)
    arguments = {"tasks": {"colours": tmp_path / "data"}, "heads": {"colours": weight}, "device": "cpu"}
    suite = fl.load_suite("tiny-clip", tuning="none", **arguments)
    batch, labels = next(suite.batches("colours", "test"))
    assert batch["pixel_values"].shape == (6, 3, 32, 32)
    assert torch.equal(batch["pixel_values"].mean((2, 3)).argmax(1), 2 - labels)
    with pytest.raises(ParameterError, match=r"no fine-tuned models for your own tasks \(colours\)"):
        fl.load_suite("tiny-clip", **arguments)
    suite.model().save_pretrained(tmp_path / "mine")
    own = fl.load_suite("tiny-clip", checkpoints={"colours": tmp_path / "mine"}, **arguments)
    assert all(torch.equal(own.finetuned["colours"][name], tensor) for name, tensor in suite.pretrained.items())


def test_data_of_other_content_have_another_fingerprint(tmp_path):
    head = torch.ones(3, 384)
    prints = []
    for count in (6, 9, 6):
        path = write_parquet(tmp_path / str(len(prints)) / "test.parquet", count)
        suite = fl.load_suite(tasks={"own": path}, heads={"own": head}, tuning="none", device="cpu")
        prints.append(suite.fingerprint)
    assert prints[0] == prints[2] != prints[1]


def test_missing_columns_and_names(tmp_path):
    with pytest.raises(ParameterError, match=r"no column 'image'.*found picture, label"):
        own_task("own", write_parquet(tmp_path / "a" / "test.parquet", 6, image="picture"))
    with pytest.raises(ParameterError, match=r"column 'label' .*int64.*not ClassLabel.*cast_column"):
        own_task("own", write_parquet(tmp_path / "b" / "test.parquet", 6, plain=True))


def test_classes_must_agree(tmp_path):
    write_pictures(tmp_path, "train", 2)
    write_pictures(tmp_path, "test", 2, names=["green", "red"])
    with pytest.raises(ParameterError, match=r"differ between train and test \(blue_ish\)"):
        own_task("own", tmp_path)


def test_nothing_to_read(tmp_path):
    with pytest.raises(CheckpointError, match="nothing is there"):
        own_task("own", tmp_path / "absent")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(CheckpointError, match=r"is no .parquet file and no folder"):
        own_task("own", tmp_path / "notes.txt")
    with pytest.raises(CheckpointError, match=r"neither Parquet files nor folders.*Found: notes.txt"):
        own_task("own", tmp_path)
    write_parquet(tmp_path / "colours.parquet", 6)
    with pytest.raises(ParameterError, match="does not say which split it is"):
        own_task("own", tmp_path)
