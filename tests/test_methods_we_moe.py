"""Weight-ensembling MoE as a method: what no step gives, what a step changes, texts with padding, and saving."""

import copy
import dataclasses

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2Model, T5Config, T5EncoderModel

import fusionlib as fl
from fusionlib.core import KeyMismatch, NonFiniteError, ParameterError
from fusionlib.methods import task_arithmetic, we_moe
from fusionlib.ops.blocks import mlp_names
from fusionlib.ops.calibration import CalibrationData
from fusionlib.ops.entropy import mean_entropy
from fusionlib.ops.substitutes import substitutes_of
from fusionlib.testing import assert_same_weights, tiny_pictures, tiny_transformer

NUM_TASKS = 3
QUICK = {"steps": 3, "batch_size": 8, "lr": 0.01}


def models(num_tasks=NUM_TASKS):
    """Models near each other, as fine-tunes are."""
    base = tiny_transformer(0)
    finetuned = []
    for seed in range(1, num_tasks + 1):
        moved, other = copy.deepcopy(base), tiny_transformer(seed)
        for parameter, direction in zip(moved.parameters(), other.parameters(), strict=True):
            parameter.data += 0.3 * direction.data
        finetuned.append(moved)
    return base, finetuned


def pictures(batch=6):
    generator = torch.Generator().manual_seed(9)
    return torch.randn(batch, 3, 8, 8, generator=generator)


@torch.no_grad()
def answers(model, inputs=None):
    return model(pixel_values=pictures() if inputs is None else inputs).image_embeds


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)


def test_a_constant_router_without_a_step_is_task_arithmetic():
    base, finetuned = models()
    constant = {"router_layers": 0, "init": 0.4, "scale": 0.4, "steps": 0}
    mixed = we_moe.fuse(base, finetuned, data=tiny_pictures(NUM_TASKS), **constant)
    merged = copy.deepcopy(base)
    states = [model.state_dict() for model in finetuned]
    merged.load_state_dict(task_arithmetic.fuse(base.state_dict(), states, scale=0.4))
    close(answers(mixed), answers(merged))
    assert mixed.entropies.shape == (0, NUM_TASKS)


def test_one_model_alone_comes_back():
    base, (only,) = models(1)
    mixed = we_moe.fuse(base, [only], data=tiny_pictures(1), **we_moe.card.identity)
    close(answers(mixed), answers(only))


def test_outside_the_mlps_it_is_task_arithmetic_with_the_scale():
    base, finetuned = models()
    mixed = we_moe.fuse(base, finetuned, data=tiny_pictures(NUM_TASKS), scale=0.7, init=0.1, steps=0)
    expected = task_arithmetic.fuse(base.state_dict(), [model.state_dict() for model in finetuned], scale=0.7)
    state = mixed.state_dict()
    rest = {key: value for key, value in expected.items() if ".mlp." not in key}
    assert_same_weights({key: state[key] for key in rest}, rest)
    name = mlp_names(base)[1]
    vector = finetuned[2].get_parameter(f"{name}.fc1.weight") - base.get_parameter(f"{name}.fc1.weight")
    torch.testing.assert_close(state[f"{name}.task_vectors.fc1.weight"][2], vector)


def test_a_picture_does_not_depend_on_the_others():
    mixed = we_moe.fuse(*models(), data=tiny_pictures(NUM_TASKS), **{**QUICK, "lr": 0.3})
    together, inputs = answers(mixed), pictures()
    for index in range(len(inputs)):
        close(answers(mixed, inputs[index : index + 1])[0], together[index])


def test_only_routers_are_trained_and_no_gradient_is_left():
    base, finetuned = models()
    base.vision_model.pre_layrnorm.weight.requires_grad_(False)
    before = we_moe.fuse(base, finetuned, data=tiny_pictures(NUM_TASKS), **{**QUICK, "steps": 0}).state_dict()
    mixed = we_moe.fuse(base, finetuned, data=tiny_pictures(NUM_TASKS), **QUICK)
    changed = {name for name, value in mixed.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if ".router." in name}
    assert mixed.entropies.shape == (3, NUM_TASKS) and not mixed.training
    assert all(parameter.grad is None for parameter in mixed.parameters())
    frozen = {name for name, parameter in mixed.named_parameters() if not parameter.requires_grad}
    assert {name.split(".mlp.")[-1].split(".")[0] for name in frozen if ".mlp." in name} == {"base", "task_vectors"}
    assert {name for name in frozen if ".mlp." not in name} == {"vision_model.pre_layrnorm.weight"}


def test_entropy_falls():
    mixed = we_moe.fuse(*models(), data=tiny_pictures(NUM_TASKS), lr=0.02, steps=25, batch_size=40)
    assert mixed.entropies[-1].sum() < 0.98 * mixed.entropies[0].sum()


# Adam's first step has the length lr against the sign of the gradient, which two evaluations of the loss tell.
def test_the_first_step_goes_downhill_by_finite_differences():
    data = tiny_pictures(NUM_TASKS)
    given = {"data": data, "router_layers": 0, "batch_size": 8, "lr": 0.01}
    start, after = (we_moe.fuse(*models(), steps=steps, **given) for steps in (0, 1))
    batches = {task: next(data.stream(task, "val", 8)) for task in data.tasks}
    moved = {name: part.router.bias for name, part in substitutes_of(after).items()}

    @torch.no_grad()
    def loss():
        return sum(mean_entropy(data.logits(task, start, batch)).item() for task, batch in batches.items())

    checked = 0
    for name, part in substitutes_of(start).items():
        for index in range(NUM_TASKS):
            step = torch.zeros(NUM_TASKS)
            step[index] = 0.02
            part.router.bias.data += step
            up = loss()
            part.router.bias.data -= 2 * step
            slope = (up - loss()) / 0.04
            part.router.bias.data += step
            if abs(slope) > 1e-3:
                change = (moved[name] - part.router.bias)[index].item()
                assert change == pytest.approx(-0.01 if slope > 0 else 0.01, rel=0.02)
                checked += 1
    assert checked >= 5


def test_the_order_of_the_models_is_without_effect():
    base, finetuned = models()
    mixed = we_moe.fuse(base, finetuned, data=tiny_pictures(NUM_TASKS), **QUICK)
    data = tiny_pictures(NUM_TASKS)
    order = (2, 0, 1)
    turned = dataclasses.replace(data, tasks=tuple(data.tasks[index] for index in order))
    other = we_moe.fuse(base, [finetuned[index] for index in order], data=turned, **QUICK)
    close(answers(other), answers(mixed))


def test_the_seed_of_the_data_draws_the_routers():
    draws = [
        we_moe.fuse(*models(), data=tiny_pictures(NUM_TASKS, seed=seed), steps=0).state_dict() for seed in (0, 0, 1)
    ]
    routers = [name for name in draws[0] if name.endswith("router.2.weight")]
    assert all(torch.equal(draws[0][name], draws[1][name]) for name in routers)
    assert not any(torch.equal(draws[0][name], draws[2][name]) for name in routers)
    assert not torch.equal(draws[0][routers[0]], draws[0][routers[1]])


def test_test_inputs_must_be_allowed():
    assert we_moe.card.needs_with({"split": "test"}) == {"inputs", "test-inputs"}
    assert we_moe.card.needs_with({"split": "val"}) == {"inputs"}
    shut = dataclasses.replace(tiny_pictures(NUM_TASKS), allowed=frozenset({"inputs"}))
    with pytest.raises(ParameterError, match="test inputs"):
        we_moe.fuse(*models(), data=shut, split="test", steps=1)


def text_data(tasks=("a", "b")):
    """Texts of one to six tokens, padded to the longest, with heads of three classes."""
    generator = torch.Generator().manual_seed(2)
    texts = {task: torch.randint(3, 16, (20, 6), generator=generator) for task in tasks}
    lengths = {task: torch.randint(1, 7, (20,), generator=generator) for task in tasks}
    heads = {task: torch.randn(8, 3, generator=generator) for task in tasks}

    def read(task, split, indices):
        length = lengths[task][list(indices)]
        mask = (torch.arange(int(length.max())) < length[:, None]).long()
        ids = texts[task][list(indices), : mask.shape[1]] * mask
        return {"input_ids": ids, "attention_mask": mask}, torch.zeros(len(indices), dtype=torch.long)

    def head(task):
        def logits(features, batch):
            mask = batch["attention_mask"].unsqueeze(-1)
            return (features * mask).sum(dim=1) / mask.sum(dim=1) @ heads[task]

        return logits

    sizes = {(task, split): 20 for task in tasks for split in ("val", "test")}
    return CalibrationData(tuple(tasks), sizes, read, {task: head(task) for task in tasks})


def gpt2(seed):
    torch.manual_seed(seed)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return GPT2Model(GPT2Config(n_embd=8, n_layer=2, n_head=2, vocab_size=16, n_positions=8, **ids)).eval()


def t5(seed):
    torch.manual_seed(seed)
    small = {"d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 2, "num_heads": 2, "vocab_size": 16}
    return T5EncoderModel(T5Config(**small, feed_forward_proj="gated-gelu")).eval()


@pytest.mark.parametrize("make", [gpt2, t5])
def test_texts_with_padding(make):
    data = text_data()
    mixed = we_moe.fuse(make(0), [make(1), make(2)], data=data, lr=0.1, steps=3, batch_size=5)
    (batch, _), (alone, _) = data.read("a", "val", range(8)), data.read("a", "val", [3])
    assert batch["input_ids"].shape[1] > alone["input_ids"].shape[1]
    with torch.no_grad():
        close(data.logits("a", mixed, batch)[3], data.logits("a", mixed, alone)[0])


@pytest.mark.parametrize("make", [tiny_transformer, gpt2, t5])
def test_saved_and_loaded(make, tmp_path):
    data = tiny_pictures(2) if make is tiny_transformer else text_data()
    mixed = we_moe.fuse(make(0), [make(1), make(2)], data=data, **QUICK)
    again = fl.load(fl.save(mixed, tmp_path / "mixed"))
    assert_same_weights(again.state_dict(), mixed.state_dict(), rtol=0, atol=0)
    batch = data.read(data.tasks[0], "val", range(4))[0]
    with torch.no_grad():
        assert torch.equal(data.logits(data.tasks[0], again, batch), data.logits(data.tasks[0], mixed, batch))
    assert again.active_parameters == mixed.active_parameters == sum(p.numel() for p in mixed.parameters())


def test_bfloat16():
    base, finetuned = models()
    data = tiny_pictures(NUM_TASKS)

    def read(task, split, indices):
        batch, labels = data.read(task, split, indices)
        return {"pixel_values": batch["pixel_values"].bfloat16()}, labels

    half = we_moe.fuse(
        base.bfloat16(), [model.bfloat16() for model in finetuned], data=dataclasses.replace(data, read=read), **QUICK
    )
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert bool(torch.isfinite(answers(half, pictures().bfloat16())).all())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"scale": float("nan")}, "scale = nan"),
        ({"init": float("inf")}, "init = inf"),
        ({"lr": 0}, "lr = 0"),
        ({"steps": -1}, "steps = -1"),
        ({"steps": 1.5}, "steps = 1.5"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"router_layers": 3}, "router_layers = 3"),
        ({"split": "vall"}, "vall"),
    ],
)
def test_bad_hyperparameters(given, message):
    with pytest.raises(ParameterError, match=message):
        we_moe.fuse(*models(), data=tiny_pictures(NUM_TASKS), **{**QUICK, **given})


def test_models_that_do_not_fit_are_refused():
    base, finetuned = models()
    with pytest.raises(ParameterError, match="3 fine-tuned models were given with the data of 2 tasks"):
        we_moe.fuse(base, finetuned, data=tiny_pictures(2), **QUICK)
    finetuned[1].visual_projection.weight.data[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"finetuned\[1\]"):
        we_moe.fuse(base, finetuned, data=tiny_pictures(NUM_TASKS), **QUICK)
    with pytest.raises(KeyMismatch):
        we_moe.fuse(base, [nn.Linear(3, 4)] * NUM_TASKS, data=tiny_pictures(NUM_TASKS), **QUICK)
    convolutions = [nn.Sequential(nn.Conv2d(3, 4, 3)) for _ in range(3)]
    with pytest.raises(ParameterError, match="has no dense MLP"):
        we_moe.fuse(convolutions[0], convolutions[1:], data=tiny_pictures(2), **QUICK)


def test_routers_that_are_not_finite_are_an_error():
    with pytest.raises(NonFiniteError, match="Use a smaller lr than"):
        we_moe.fuse(*models(), data=tiny_pictures(NUM_TASKS), lr=1e30, steps=3, batch_size=8)
