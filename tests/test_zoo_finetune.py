"""The training loop: what it trains, and that stopping and going on changes no bit."""

import math
from dataclasses import replace

import pytest
import torch

from fusionlib.core import CheckpointError, ParameterError, UnknownName
from fusionlib.zoo import finetune as module
from fusionlib.zoo.backbone import tiny_clip
from fusionlib.zoo.finetune import finetune, schedule
from fusionlib.zoo.heads import make_head
from fusionlib.zoo.recipe import RECIPES, Recipe, get_recipe, training_seed
from fusionlib.zoo.task import embedded_task


class Stop(Exception):
    pass


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSIONLIB_HOME", str(tmp_path))
    monkeypatch.setattr(module, "SNAPSHOT_STEPS", 2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)


def small(kind, **changes):
    return replace(RECIPES[kind], **{"steps": 6, "batch_size": 8, "warmup": 2, **changes})


def train(path, recipe, names=("flags",), seed=7, stop_at=None):
    backbone = tiny_clip()
    tasks = [embedded_task(name) for name in names]
    seen = []

    def on_step(step):
        seen.append(step)
        if step == stop_at:
            raise Stop

    heads = [make_head(task, backbone, None) for task in tasks]
    trained = finetune(backbone, tasks, heads, recipe, seed, path / "snapshot.safetensors", on_step)
    return trained.model.state_dict(), seen


def same(a, b):
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("kind", "names"), [("full", ("flags",)), ("lora", ("flags",)), ("joint", ("flags", "emoji"))])
def test_resumed_is_bit_identical(tmp_path, kind, names):
    recipe = small(kind)
    whole, steps = train(tmp_path / "whole", recipe, names)
    assert steps == [0, 1, 2, 3, 4, 5, 6]
    with pytest.raises(Stop):
        train(tmp_path / "cut", recipe, names, stop_at=5)
    resumed, steps = train(tmp_path / "cut", recipe, names)
    assert steps == [4, 5, 6]
    assert same(whole, resumed)


def test_seed_and_threads(tmp_path):
    recipe = small("lora")
    first, _ = train(tmp_path / "a", recipe)
    torch.manual_seed(1234)  # the caller's generator plays no part
    again, _ = train(tmp_path / "b", recipe)
    other, _ = train(tmp_path / "c", recipe, seed=8)
    assert same(first, again) and not same(first, other)


def test_full_trains_everything_but_embeddings_and_projection(tmp_path):
    state, _ = train(tmp_path, small("full"))
    moved = {name for name, tensor in tiny_clip().state.items() if not torch.equal(tensor, state[name])}
    kept = set(state) - moved
    assert kept and all(name.startswith(("visual_projection.", "vision_model.embeddings.")) for name in kept)
    assert sum(state[name].numel() for name in moved) == 793_600


def test_lora_trains_its_adapters_alone(tmp_path):
    state, _ = train(tmp_path, small("lora"))
    adapters = {name: tensor for name, tensor in state.items() if "lora_" in name}
    assert sum(tensor.numel() for tensor in adapters.values()) == 32_768
    assert any(tensor.abs().sum() > 0 for name, tensor in adapters.items() if "lora_B" in name)
    base = tiny_clip().state
    for name, tensor in state.items():
        if name not in adapters:
            assert torch.equal(tensor, base[name.removeprefix("base_model.model.").replace(".base_layer", "")])


def test_first_step_is_adamw_by_hand(tmp_path):
    recipe = small("full", steps=1, warmup=1)
    state, _ = train(tmp_path, recipe)
    name = "vision_model.post_layernorm.weight"
    before, rate = tiny_clip().state[name], recipe.learning_rate
    # Adam's first step moves every number by the learning rate, against the sign of its gradient
    moved = state[name] - before * (1 - rate * recipe.weight_decay)
    torch.testing.assert_close(moved.abs(), torch.full_like(moved, rate), rtol=0, atol=2e-7)


def test_schedule():
    recipe = Recipe()
    assert schedule(0, recipe) == pytest.approx(1 / 20)
    assert schedule(19, recipe) == pytest.approx(0.5 * (1 + math.cos(math.pi * 19 / 300)))
    assert schedule(150, recipe) == pytest.approx(0.5)
    assert 0 < schedule(299, recipe) < 1e-4


def test_seeds_and_recipes_are_the_stated_ones():
    assert training_seed("mnist", 2) == 2000 + sum(map(ord, "mnist"))
    full, lora, joint = RECIPES["full"], RECIPES["lora"], RECIPES["joint"]
    assert (full.steps, full.batch_size, full.learning_rate, full.rank) == (300, 64, 1e-4, None)
    assert (lora.steps, lora.learning_rate, lora.rank, lora.alpha) == (300, 1e-3, 16, 32)
    assert (joint.steps, joint.batch_size, joint.learning_rate) == (700, 16, 5e-4)
    with pytest.raises(UnknownName, match=r"no recipe called 'fll'. Did you mean 'full'"):
        get_recipe("fll")


def test_the_environment_shortens_recipes(monkeypatch):
    monkeypatch.setenv("FUSIONLIB_STEP_SHARE", "0.25")
    for backbone, steps, warmup in (("tiny-clip", 75, 5), ("tiny-nyu", 75, 5), ("tiny-gpt2", 44, 3)):
        found = get_recipe("full", backbone, 1860)
        assert (found.steps, found.warmup) == (steps, warmup)
    monkeypatch.setenv("FUSIONLIB_STEP_SHARE", "0.0001")
    assert get_recipe("joint").steps == 1
    for wrong in ("0", "1.5", "a tenth", "nan"):
        monkeypatch.setenv("FUSIONLIB_STEP_SHARE", wrong)
        with pytest.raises(ParameterError, match=f"FUSIONLIB_STEP_SHARE is '{wrong}': set a number above 0"):
            get_recipe("full")


def test_truncated_snapshot_is_named(tmp_path):
    with pytest.raises(Stop):
        train(tmp_path, small("full"), stop_at=3)
    path = tmp_path / "snapshot.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"snapshot.safetensors can't be read.*Delete it to start"):
        train(tmp_path, small("full"))
