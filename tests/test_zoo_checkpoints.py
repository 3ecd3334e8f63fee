"""Fine-tunes on disk: what is written, what is verified, who may write."""

import io
import json
import threading
import time
from dataclasses import replace

import pytest
import torch
from filelock import FileLock

import fusionlib as fl
from fusionlib.core import CheckpointError
from fusionlib.testing import assert_same_weights
from fusionlib.zoo import checkpoints, recipe, worker
from fusionlib.zoo.backbone import tiny_clip
from fusionlib.zoo.files import hash_file
from fusionlib.zoo.job import Job, joint_job, plan


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSIONLIB_HOME", str(tmp_path))
    for kind in recipe.RECIPES:
        monkeypatch.setitem(recipe.RECIPES, kind, replace(recipe.RECIPES[kind], steps=2, batch_size=4))
    return tmp_path


def make(job):
    events = io.StringIO()
    worker.make(job, events)
    return [json.loads(line) for line in events.getvalue().splitlines()]


def jobs(tuning="full", seed=0):
    return plan("tiny-clip", ("flags",), tuning, seed, multitask=False)


def test_name_covers_all_that_determines_the_weights():
    (job,) = jobs()
    others = [
        *jobs("lora"),
        *jobs(seed=1),
        joint_job("tiny-clip", ("flags",), 0),
        joint_job("tiny-clip", ("flags", "emoji"), 0),
        replace(job, recipe=replace(job.recipe, steps=3)),
        replace(job, tasks=("emoji",)),
    ]
    assert len({job.name, *(other.name for other in others)}) == 7
    assert job.name.startswith("flags-full-seed0-") and others[3].name.startswith("joint2-seed0-")
    assert Job.from_json(json.loads(json.dumps(job.to_json()))) == job


@pytest.mark.parametrize(
    ("tuning", "written"),
    [
        ("full", {"config.json", "model.safetensors", "fusionlib.json"}),
        ("lora", {"adapter_config.json", "adapter_model.safetensors", "fusionlib.json"}),
    ],
)
def test_written_and_read(tuning, written):
    (job,) = jobs(tuning)
    assert make(job)[-1] == {"event": "done"}
    assert {path.name for path in job.folder.iterdir()} == written and not job.partial.exists()
    facts = json.loads((job.folder / "fusionlib.json").read_text())
    assert facts["recipe"]["steps"] == 2 and facts["data_sha256"] == job.data_hash and facts["train_seconds"] > 0
    assert facts["validation"]["flags"][1] == 172 and set(facts["versions"]) >= {"torch", "transformers", "peft"}
    assert facts["files"] == {name: hash_file(job.folder / name) for name in written - {"fusionlib.json"}}
    state = checkpoints.load(job, tiny_clip()).state
    assert list(state) == list(tiny_clip().state) and {tensor.dtype for tensor in state.values()} == {torch.float32}
    assert not torch.equal(
        state["vision_model.encoder.layers.0.self_attn.q_proj.weight"],
        tiny_clip().state["vision_model.encoder.layers.0.self_attn.q_proj.weight"],
    )


def test_merged_adapter_is_what_peft_computes():
    from peft import PeftModel

    (job,) = jobs("lora")
    make(job)
    with pytest.warns(FutureWarning, match="is_gradient_checkpointing"):
        adapted = PeftModel.from_pretrained(tiny_clip().build(), str(job.folder)).eval()
    merged = tiny_clip().build(checkpoints.load(job, tiny_clip()).state)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, found = adapted(pixel_values=pixels).image_embeds, merged(pixel_values=pixels).image_embeds
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_full_fine_tune_opens_with_from_pretrained():
    from transformers import CLIPVisionModelWithProjection

    (job,) = jobs()
    make(job)
    model = CLIPVisionModelWithProjection.from_pretrained(job.folder)
    assert_same_weights(model.state_dict(), checkpoints.load(job, tiny_clip()).state, rtol=0, atol=0)


def test_corrupt_file_is_named_with_both_hashes(home):
    (job,) = jobs()
    make(job)
    path = job.folder / "model.safetensors"
    expected = hash_file(path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        fl.load_suite(tasks=["flags"], device="cpu")
    message = str(caught.value)
    assert all(part in message for part in (str(path), expected, hash_file(path), f"Delete the folder {job.folder}"))
    assert path.read_bytes() == content  # nothing was made again behind the user's back


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing; expected a file"),
        (lambda folder: (folder / "config.json").write_text("{}"), "config.json is corrupt: expected SHA-256"),
        (lambda folder: (folder / "fusionlib.json").unlink(), "fusionlib.json can't be read"),
        (lambda folder: (folder / "fusionlib.json").write_text("{"), "fusionlib.json can't be read"),
        (lambda folder: (folder / "fusionlib.json").write_text("[]"), "fusionlib.json can't be read"),
    ],
)
def test_damage_is_named_with_the_remedy(harm, message):
    (job,) = jobs()
    make(job)
    harm(job.folder)
    with pytest.raises(CheckpointError, match=rf"{message}.*Delete the folder"):
        checkpoints.load(job, tiny_clip())


def test_a_second_process_waits_and_makes_nothing(monkeypatch):
    (job,) = jobs()
    make(job)
    monkeypatch.setattr(worker, "_train", lambda *_: pytest.fail("made twice"))
    assert make(job) == [{"event": "done"}]
    events = io.StringIO()
    with FileLock(job.lock):
        second = threading.Thread(target=worker.make, args=(job, events))
        second.start()
        while "waiting" not in events.getvalue():
            time.sleep(0.01)
        time.sleep(0.1)
        assert "done" not in events.getvalue()
    second.join(timeout=10)
    assert [json.loads(line)["event"] for line in events.getvalue().splitlines()] == ["waiting", "done"]
