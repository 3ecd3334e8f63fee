"""The rendered scenes and the suite made of them: what the files hold, resumption, heads, and what methods refuse."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import fusionlib as fl
from fusionlib.core import NegativeVariance, ParameterError
from fusionlib.zoo import checkpoints, files, finetune, job, recipe, worker
from fusionlib.zoo.dense import tiny_nyu
from fusionlib.zoo.making import tiny_nyu_base, tiny_nyu_data
from fusionlib.zoo.making.scenes import CLASSES, draw_room, render
from fusionlib.zoo.task import embedded_task

CPU = torch.device("cpu")
FACTS = json.loads((files.SCENES / "scenes.json").read_text())
pytestmark = pytest.mark.usefixtures("one_thread_home")


def small(**changes):
    return replace(recipe.NYU, **{"steps": 4, "batch_size": 4, "warmup": 2, **changes})


def test_the_files_are_those_that_the_script_made():
    assert FACTS["files"] == {path.name: files.hash_file(path) for path in files.SCENES.glob("*.parquet")}
    assert tuple(FACTS["classes"]) == embedded_task("segmentation").classes == CLASSES
    for split, facts in FACTS["splits"].items():
        assert embedded_task("depth").num_examples(split) == facts["scenes"]
    seeds = [set(range(f["first_seed"], f["first_seed"] + f["scenes"])) for f in FACTS["splits"].values()]
    assert len(set.union(*seeds)) == sum(map(len, seeds))
    assert all(max(each) < tiny_nyu_base.FIRST_SEED for each in seeds)  # the base saw other rooms


def test_a_seed_gives_the_scene_that_is_stored():
    first = FACTS["splits"]["val"]["first_seed"]
    again, other = render(draw_room(first), first), render(draw_room(first + 1), first + 1)
    assert np.array_equal(again.image, render(draw_room(first), first).image)
    assert not np.array_equal(again.image, other.image)
    tasks = {name: embedded_task(name) for name in ("segmentation", "depth", "normal")}
    batch, label = tiny_nyu().preprocess.examples(tasks["segmentation"], "val", [0], CPU)
    pictures = tiny_nyu().preprocess
    stored = batch["pixel_values"][0] * torch.tensor(pictures.std).view(3, 1, 1) + torch.tensor(pictures.mean).view(
        3, 1, 1
    )
    near = torch.from_numpy(again.image).permute(2, 0, 1).float() / 255
    assert (stored - near).abs().max() < 0.02  # another machine may round otherwise
    assert (label[0] == torch.from_numpy(again.label)).float().mean() > 0.999
    depth = tiny_nyu().preprocess.examples(tasks["depth"], "val", [0], CPU)[1][0, 0]
    assert ((depth - torch.from_numpy(again.depth)).abs() < 0.0051).float().mean() > 0.999
    normal = tiny_nyu().preprocess.examples(tasks["normal"], "val", [0], CPU)[1][0]
    cosine = (normal * torch.from_numpy(again.normal).permute(2, 0, 1)).sum(0)[depth > 0]
    assert cosine.min() > 0.9999 and normal[:, depth == 0].abs().sum() == 0


def test_geometry_agrees_with_itself():
    """Where depth is smooth, the normal is that of the surface through neighbouring points."""
    seed = FACTS["splits"]["test"]["first_seed"]
    room = draw_room(seed)
    seen = render(room, seed)
    height, width = seen.depth.shape
    across = ((np.arange(width) + 0.5) / width * 2 - 1)[None, :] * room.reach * seen.depth
    upwards = ((1 - (np.arange(height) + 0.5) / height * 2) * height / width)[:, None] * room.reach * seen.depth
    points = np.stack([across, upwards, -seen.depth], axis=-1)
    right, down = points[:-1, 1:] - points[:-1, :-1], points[1:, :-1] - points[:-1, :-1]
    found = np.cross(down, right)
    found /= np.linalg.norm(found, axis=-1, keepdims=True) + 1e-12
    flat = (seen.label[:-1, :-1] <= 2) & (seen.label[1:, 1:] == seen.label[:-1, :-1]) & (seen.depth[:-1, :-1] > 0)
    flat &= (seen.label[:-1, 1:] == seen.label[:-1, :-1]) & (seen.label[1:, :-1] == seen.label[:-1, :-1])
    cosine = (found * seen.normal[:-1, :-1]).sum(-1)[flat]
    assert flat.sum() > 500 and (cosine > 0.999).mean() > 0.95


def test_the_script_writes_what_the_reader_reads(tmp_path):
    tiny_nyu_data.write_split(tmp_path / "scenes-val.parquet", tiny_nyu_data.make_split("val", 2))
    from datasets import Dataset

    rows = Dataset.from_parquet(str(tmp_path / "scenes-val.parquet"), cache_dir=str(tmp_path))
    assert rows.column_names == ["image", "label", "depth", "normal"] and rows[1]["image"].size == (64, 48)


def test_the_base_is_what_its_provenance_says():
    provenance = json.loads((files.SCENES / "tiny-nyu" / "provenance.json").read_text())
    assert provenance["files"]["model.safetensors"] == files.hash_file(files.SCENES / "tiny-nyu" / "model.safetensors")
    base = tiny_nyu()
    assert base.config == tiny_nyu_base.CONFIG and base.dim == 512
    assert sum(v.numel() for v in base.build().parameters()) == 506_384
    assert sum(provenance["right_answers"]) > sum(provenance["most_frequent_answer"])


def test_resumed_is_bit_identical_statistics_and_decoder_included(tmp_path, monkeypatch):
    monkeypatch.setattr(finetune, "SNAPSHOT_STEPS", 2)
    backbone, task = replace(tiny_nyu(), dropout=0.5), embedded_task("normal")

    class Stop(Exception):
        pass

    def train(name, stop_at=None):
        def on_step(step):
            if step == stop_at:
                raise Stop

        head = backbone.start_head(task, 7)
        path = tmp_path / name / "snapshot.safetensors"
        trained = finetune.finetune(backbone, [task], [head], small(), 7, path, on_step)
        return {**trained.model.state_dict(), **{f"head {n}": v for n, v in head.state_dict().items()}}

    whole = train("whole")
    with pytest.raises(Stop):
        train("cut", stop_at=3)
    resumed = train("cut")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    start = tiny_nyu().state
    assert whole["bn1.num_batches_tracked"] == start["bn1.num_batches_tracked"] + 4
    assert not torch.equal(whole["bn1.running_mean"], start["bn1.running_mean"])


def test_a_suite_with_its_decoders_is_measured_merged_and_its_statistics_measured_again(monkeypatch):
    monkeypatch.setattr(job, "get_recipe", lambda *_: small(steps=2))
    for name in ("depth", "segmentation"):
        worker.make(job.Job("tiny-nyu", (name,), "full", 0, small(steps=2)), io.StringIO())
    made = job.Job("tiny-nyu", ("depth",), "full", 0, small(steps=2))
    assert isinstance(json.loads((made.folder / "fusionlib.json").read_text())["validation"]["depth"], float)
    assert "answer.weight" in checkpoints.load(made, tiny_nyu()).head
    suite = fl.load_suite("tiny-nyu", ["depth", "segmentation"], device="cpu", progress=False)
    assert not suite.heads["depth"].training
    record = fl.run("task_arithmetic", suite, limit=6, scale=0.3)
    assert set(record.metrics["segmentation"]) == {"miou", "pixel_accuracy"} and record.counts["depth"][1] == 6
    again = fl.run("task_arithmetic", suite, limit=6, scale=0.3, batch_norm="reestimate")
    assert (
        again.key != record.key and again.needs == ("inputs",) and again.hyperparameters["batch_norm"] == "reestimate"
    )
    with pytest.raises(NegativeVariance, match=r'under .*running_var.*batch_norm="reestimate"'):
        fl.fuse("task_arithmetic", suite, scale=100.0)
    far = fl.fuse("task_arithmetic", suite, scale=100.0, batch_norm="reestimate").state_dict()
    assert all(bool((value >= 0).all()) for name, value in far.items() if name.endswith("running_var"))
    model = fl.fuse("simple_average", suite)
    measured = fl.reestimate_batch_norm(model, suite, num_examples=16, batch_size=8)
    one, two = model.state_dict(), measured.state_dict()
    assert not torch.equal(one["bn1.running_var"], two["bn1.running_var"])
    assert torch.equal(one["conv1.weight"], two["conv1.weight"])
    assert torch.equal(one["bn1.num_batches_tracked"], suite.pretrained["bn1.num_batches_tracked"])
    for method in ("task_wise_adamerging", "fisher_merging"):
        with pytest.raises(ParameterError, match=r"shape \(\d+, \d, 48, 64\)"):
            fl.fuse(method, suite, **({"steps": 1} if "ada" in method else {"num_examples": 2}))
    with pytest.raises(ParameterError, match=r"batch_norm = 'again' is not known; allowed: 'average', 'reestimate'"):
        fl.run("simple_average", suite, batch_norm="again")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tasks": "tiny8"}, r"tiny-nyu reads scenes, which mnist.* are not made of.*sets of them: tiny-nyu3"),
        ({"backbone": "tiny-clip", "tasks": ["depth"]}, "tiny-clip reads images, which depth is not made of"),
        ({"tasks": "tiny-nyu3", "tuning": "lora"}, "no recipe for 'lora'"),
        ({"tasks": "tiny-nyu3", "tuning": "none"}, "decoders of tiny-nyu are trained with the fine-tunes"),
    ],
)
def test_what_scenes_cannot_have_is_refused(one_thread_home, arguments, message):
    with pytest.raises(ParameterError, match=message):
        fl.load_suite(**{"backbone": "tiny-nyu", "device": "cpu", **arguments})
    assert not (one_thread_home / "checkpoints").exists()
