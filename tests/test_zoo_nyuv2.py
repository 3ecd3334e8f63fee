"""NYUv2 from a miniature of its folder, in both layouts, and what is said where it is not complete."""

import numpy as np
import pytest
import torch
from nyuv2_miniature import arrays, write_folder

import fusionlib as fl
from fusionlib.core import CheckpointError, ParameterError
from fusionlib.zoo import finetune
from fusionlib.zoo.nyuv2 import CLASSES, nyuv2_tasks
from fusionlib.zoo.nyuv2_training import EPOCHS, RECIPE, nyuv2_suite, train_nyuv2
from fusionlib.zoo.resnet import DilatedResNet, ResNetConfig
from fusionlib.zoo.scenes import Scenes

CPU = torch.device("cpu")
READ = Scenes(288, 384, (0.0,) * 3, (1.0,) * 3)


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path)


def test_every_task_reads_its_truth_in_the_order_of_the_numbers(folder):
    segmentation, depth, normal = nyuv2_tasks(folder)
    assert segmentation.classes == CLASSES and len(CLASSES) == 13 and segmentation.metric == "segmentation"
    assert set(depth.splits) == {"train", "test"} and depth.num_examples("test") == 11
    truth = arrays(102)  # 2.npy comes before 10.npy
    batch, labels = READ.examples(segmentation, "test", [2], CPU)
    assert torch.equal(batch["pixel_values"][0], torch.from_numpy(truth["image"]).permute(2, 0, 1))
    assert torch.equal(labels[0], torch.from_numpy(truth["label"]).long()) and labels.dtype == torch.int64
    assert labels.min() == -1
    assert torch.equal(READ.examples(depth, "test", [2], CPU)[1][0, 0], torch.from_numpy(truth["depth"][..., 0]))
    (_, found), *_ = READ.batches(normal, "test", 2, 2, CPU)
    assert torch.equal(found[1], torch.from_numpy(arrays(101)["normal"]).permute(2, 0, 1))


def test_validation_pictures_are_taken_out_of_train(folder):
    task, *_ = nyuv2_tasks(folder, validation=1)
    assert (task.num_examples("train"), task.num_examples("val")) == (2, 1) and "1 of 3" in task.note
    assert set(task.split("train").rows) | set(task.split("val").rows) == {0, 1, 2}
    with pytest.raises(ParameterError, match="validation = 3 must be"):
        nyuv2_tasks(folder, validation=3)


def test_parquet_files_of_arrays(tmp_path):
    from datasets import Dataset

    for split, count in (("train", 2), ("val", 1)):
        rows = [arrays(index) for index in range(count)]
        columns = {
            name: [np.moveaxis(row[name], -1, 0).tolist() for row in rows] for name in ("image", "depth", "normal")
        }
        columns["segmentation"] = [row["label"].astype(int).tolist() for row in rows]
        (tmp_path / "data").mkdir(exist_ok=True)
        Dataset.from_dict(columns).to_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    segmentation, _, normal = nyuv2_tasks(tmp_path)
    batch, found = READ.examples(normal, "train", [0, 1], CPU)
    first = {int(row): at for at, row in enumerate(normal.split("train").rows)}[0]
    torch.testing.assert_close(found[first], torch.from_numpy(arrays(0)["normal"]).permute(2, 0, 1))
    torch.testing.assert_close(batch["pixel_values"][first], torch.from_numpy(arrays(0)["image"]).permute(2, 0, 1))
    label = READ.examples(segmentation, "test", [0], CPU)[1]
    assert torch.equal(label[0], torch.from_numpy(arrays(0)["label"]).long())


def test_what_is_missing_is_named(tmp_path, folder):
    with pytest.raises(
        CheckpointError, match=r"train split should be in .*nowhere.*is not there.*Nothing is downloaded"
    ):
        nyuv2_tasks(tmp_path / "nowhere")
    (folder / "train" / "depth" / "1.npy").unlink()
    with pytest.raises(CheckpointError, match="3 pictures and 2 files in depth: 1 are in one of the two"):
        nyuv2_tasks(folder)


def test_an_array_of_another_shape_is_refused(folder):
    np.save(folder / "train" / "normal" / "0.npy", np.zeros((10, 10, 3), np.float32))
    *_, normal = nyuv2_tasks(folder)
    with pytest.raises(
        CheckpointError, match=r"shape \(3, 10, 10\) for normal; needed, channels first, is \(3, 288, 384\)"
    ):
        READ.examples(normal, "train", range(3), CPU)


def test_a_fine_tune_goes_on_where_it_stopped_and_makes_a_suite(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(finetune, "SNAPSHOT_STEPS", 1)
    config = ResNetConfig(blocks=(1, 1, 1, 1), width=2)
    torch.manual_seed(0)
    torch.save(DilatedResNet(config).state_dict(), tmp_path / "resnet.pth")
    weights = tmp_path / "resnet.pth"

    class Stop(Exception):
        pass

    def stop(done, steps):
        assert steps == 2
        if done == 1:
            raise Stop

    given = {"epochs": 2, "validation": 1, "device": "cpu", "config": config}
    with pytest.raises(Stop):
        train_nyuv2("depth", folder, tmp_path / "cut", weights, **given, on_step=stop)
    assert not (tmp_path / "cut").exists()
    steps = []
    cut = train_nyuv2("depth", folder, tmp_path / "cut", weights, **given, on_step=lambda done, _: steps.append(done))
    assert steps == [1, 2]
    assert {path.name for path in cut.iterdir()} == {
        "config.json",
        "model.safetensors",
        "heads.safetensors",
        "fusionlib.json",
    }
    suite = nyuv2_suite(folder, {"depth": cut}, weights, validation=1, device="cpu", config=config)
    counts = fl.evaluate(suite.model(suite.finetuned["depth"]), suite, "val")
    assert counts["depth"][1] == 1 and not suite.heads["depth"].training
    with pytest.raises(ParameterError, match="trained with validation=1; with validation=0"):
        nyuv2_suite(folder, {"depth": cut}, weights, device="cpu", config=config)
    with pytest.raises(ParameterError, match=r"NYUv2 has no task 'depths'\. Did you mean 'depth'"):
        train_nyuv2("depths", folder, tmp_path / "other", weights, config=config)


def test_the_recipe_is_the_published_one():
    assert (EPOCHS, RECIPE.batch_size, RECIPE.learning_rate, RECIPE.weight_decay) == (40, 16, 1e-4, 0.0)
