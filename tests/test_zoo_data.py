"""The embedded data are what their README says, and decode once."""

import os
import re
import subprocess
import sys

import pytest
import torch
from PIL import Image

import fusionlib as fl
from fusionlib.core import CheckpointError, ParameterError, UnknownName
from fusionlib.zoo import files, inputs, names
from fusionlib.zoo.backbone import tiny_clip
from fusionlib.zoo.finetune import accuracy
from fusionlib.zoo.heads import CosineHead, make_head
from fusionlib.zoo.task import embedded_task

README = (files.DATA / "README.md").read_text()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSIONLIB_HOME", str(tmp_path))
    monkeypatch.setattr(inputs, "_kept", inputs.OrderedDict())
    return tmp_path


def readme_row(task):
    """(train, val, test, number of classes) from the table of tasks."""
    row = re.search(rf"^\| {task}(?: \(held out\))? \| ([\d,]+) / (\d+) / (\d+) \| (\d+) \|", README, re.MULTILINE)
    return [int(number.replace(",", "")) for number in row.groups()]


@pytest.mark.parametrize("name", names.IMAGE_TASKS)
def test_counts_and_classes(name):
    task = embedded_task(name)
    assert [task.num_examples(split) for split in ("train", "val", "test")] + [len(task.classes)] == readme_row(name)
    for split in ("train", "val", "test"):
        features = task.dataset(split).features
        assert tuple(features["label"].names) == task.classes
        assert type(features["image"]).__name__ == "Image"
    assert all(template.count("{}") == 1 for template in task.templates) and len(task.templates) == 3


def test_sets_list_the_tasks_of_the_pack():
    packed = {path.name.removesuffix("-test.parquet") for path in files.DATA.glob("*-test.parquet")}
    assert set(names.IMAGE_TASKS) == packed and len(names.SETS["tiny8"]) == 8


@pytest.mark.parametrize("name", names.IMAGE_TASKS)
def test_zero_shot_accuracy_is_the_readmes(name):
    sentence = re.search(r"Zero-shot accuracy on the test sets: (.*)", README).group(1)
    stated = float(re.search(rf"\b{name} (\.\d+)", sentence).group(1))
    backbone, task = tiny_clip(), embedded_task(name)
    correct, total = accuracy(backbone.build(), backbone, task, make_head(task, backbone, None), "test")
    assert total == task.num_examples("test")
    assert correct / total == pytest.approx(stated, abs=0.002)


def test_pixels_are_normalised_as_stated():
    suite = fl.load_suite(tasks=["optdigits"], tuning="none", device="cpu")
    batch, labels = next(suite.batches("optdigits", "test", limit=3))
    row = suite.tasks[0].dataset("test")[2]
    red, green, blue = row["image"].convert("RGB").getpixel((16, 9))
    assert batch["pixel_values"].shape == (3, 3, 32, 32) and batch["pixel_values"].dtype == torch.float32
    expected = torch.tensor([(value / 255 - 0.5) / 0.5 for value in (red, green, blue)])
    torch.testing.assert_close(batch["pixel_values"][2, :, 9, 16], expected)
    assert labels[2] == row["label"]


def test_second_process_decodes_nothing(home, monkeypatch):
    task, preprocess = embedded_task("flags"), tiny_clip().preprocess
    first = [chunk.clone() for chunk, _ in inputs.pixels(task, "val", preprocess)]
    inputs._kept.clear()
    monkeypatch.setattr(inputs, "_decode", lambda *_: pytest.fail("decoded again"))
    again = [chunk for chunk, _ in inputs.pixels(task, "val", preprocess)]
    assert all(map(torch.equal, first, again)) and first[0].dtype == torch.uint8
    assert [path.suffix for path in (home / "cache" / "inputs").iterdir()] == [".safetensors"]


def test_truncated_cache_is_named(home):
    task, preprocess = embedded_task("flags"), tiny_clip().preprocess
    list(inputs.pixels(task, "val", preprocess))
    inputs._kept.clear()
    (path,) = (home / "cache" / "inputs").iterdir()
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=rf"{path.name}.*Delete the file"):
        list(inputs.pixels(task, "val", preprocess))


def test_limit_decodes_one_chunk_only(monkeypatch):
    monkeypatch.setattr(inputs, "CHUNK", 100)
    task, preprocess = embedded_task("emoji"), tiny_clip().preprocess
    chunks = list(inputs.pixels(task, "test", preprocess, limit=130))
    assert [len(labels) for _, labels in chunks] == [100, 30]
    assert len(inputs._kept) == 2
    assert sum(len(labels) for _, labels in inputs.pixels(task, "test", preprocess)) == 420


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(inputs, "CHUNK", 100)
    monkeypatch.setattr(inputs, "MEMORY", 210 * 3 * 32 * 32)
    list(inputs.pixels(embedded_task("emoji"), "test", tiny_clip().preprocess))
    assert len(inputs._kept) == 2


def test_batches_in_order_and_checked():
    suite = fl.load_suite(tasks="tiny-unseen", tuning="none", device="cpu")
    assert suite.finetuned == {} and suite.weights[1] == [] and suite.multitask is None
    whole = torch.cat([labels for _, labels in suite.batches("flags", "test")])
    parts = torch.cat([labels for _, labels in suite.batches("flags", "test", batch_size=7, limit=50)])
    assert torch.equal(whole[:50], parts) and len(whole) == 430
    assert whole.tolist() == suite.task("flags").dataset("test")["label"][:]
    with pytest.raises(ParameterError, match=r"split='validation'.*Allowed: test, train, val"):
        suite.batches("flags", "validation")
    with pytest.raises(ParameterError, match="limit=0 must be an integer, 1 or greater"):
        suite.batches("flags", "test", limit=0)
    with pytest.raises(UnknownName, match=r"no task 'flag'. Did you mean 'flags'"):
        suite.batches("flag", "test")


def test_any_picture_reaches_the_backbones_size():
    picture = Image.new("L", (50, 70), 255)
    pixels = tiny_clip().preprocess.pixels(picture)
    assert pixels.shape == (3, 32, 32) and pixels.min() == 255


def test_cosine_head():
    head = CosineHead(torch.tensor([[3.0, 0.0], [0.0, 0.5]]), 10.0)
    torch.testing.assert_close(head(torch.tensor([[4.0, 3.0]])), torch.tensor([[8.0, 6.0]]))
    assert not list(head.parameters()) and head.weight.norm(dim=1).tolist() == [1.0, 1.0]


def test_suite_is_light_on_random_state():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    fl.load_suite(tasks=["flags"], tuning="none", device="cpu").model()
    assert torch.equal(torch.rand(3), expected)


def test_reading_asks_nothing_of_the_network(home):
    code = (
        "import socket, fusionlib as fl\n"
        "def refuse(*arguments, **options): raise SystemExit(f'network: {arguments}')\n"
        "socket.getaddrinfo = socket.socket.connect = refuse\n"
        "suite = fl.load_suite(tasks=['flags'], tuning='none', device='cpu')\n"
        "print(len(list(suite.batches('flags', 'test', batch_size=430))))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("1\n", "")
