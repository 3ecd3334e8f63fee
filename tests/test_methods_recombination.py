"""Model recombination: every layer once, the mean kept, and permutations that depend on seed and name alone."""

import itertools
from collections import Counter

import pytest
import torch

from fusionlib import testing
from fusionlib.core import ParameterError
from fusionlib.methods import model_recombination, simple_average
from fusionlib.methods.model_recombination import group_of

KEYS = (
    "embeddings.class_embedding",
    "embeddings.patch.weight",
    "embeddings.patch.bias",
    *(f"encoder.layers.{i}.{part}" for i in range(12) for part in ("attn.weight", "attn.bias", "mlp.2.weight")),
    "norm.weight",
    "norm.bias",
    "head",
)


def marked(num_models):
    """State dicts that hold, everywhere, the number of the model: model t's tensors are full of t."""
    return [{key: torch.full((2,), float(index)) for key in KEYS} for index in range(num_models)]


def owners(states):
    """For every key, from which model each of the recombined models has it."""
    return {key: tuple(int(state[key][0]) for state in states) for key in KEYS}


@pytest.mark.parametrize("unit", ["block", "tensor"])
@pytest.mark.parametrize("num_models", [1, 2, 5])
def test_every_layer_is_used_exactly_once(unit, num_models):
    states = marked(num_models)
    made = model_recombination.fuse(states[0], states, return_all=True, unit=unit)
    assert len(made) == num_models
    assert all(sorted(found) == list(range(num_models)) for found in owners(made).values())
    assert all(bool((state[key] == state[key][0]).all()) for state in made for key in KEYS)


def test_units():
    states = marked(5)
    by_block = owners(model_recombination.fuse(states[0], states, return_all=True))
    by_tensor = owners(model_recombination.fuse(states[0], states, return_all=True, unit="tensor"))
    groups = {group: list(keys) for group, keys in itertools.groupby(KEYS, key=group_of)}
    assert list(groups) == ["embeddings", "embeddings.patch", *(f"encoder.layers.{i}" for i in range(12)), "norm", ""]
    for keys in groups.values():
        assert len({by_block[key] for key in keys}) == 1
    assert len({by_block[keys[0]] for keys in groups.values()}) > 8
    assert sum(by_tensor[keys[0]] != by_tensor[keys[-1]] for keys in groups.values()) > 8


def test_blocks_of_many_families():
    assert group_of("vision_model.encoder.layers.3.mlp.fc1.weight") == "vision_model.encoder.layers.3"
    assert group_of("encoder.block.1.layer.0.SelfAttention.q.weight") == "encoder.block.1"
    assert group_of("layer1.0.conv1.weight") == "layer1.0"
    assert group_of("encoder.layers.encoder_layer_0.mlp.3.bias") == "encoder.layers.encoder_layer_0"
    assert group_of("shared.weight") == "shared"


def test_the_first_of_all_is_what_comes_back_alone():
    pretrained, finetuned = testing.tiny_models()
    alone = model_recombination.fuse(pretrained, finetuned, seed=3)
    testing.assert_same_weights(alone, model_recombination.fuse(pretrained, finetuned, seed=3, return_all=True)[0])


def test_the_mean_is_the_simple_average():
    pretrained, finetuned = testing.tiny_models()
    average = simple_average.fuse(pretrained, finetuned)
    for seed in range(3):
        made = model_recombination.fuse(pretrained, finetuned, seed=seed, return_all=True)
        testing.assert_same_weights(simple_average.fuse(pretrained, made), average)


def test_random_numbers_depend_on_seed_and_name_alone():
    states = marked(5)
    first = owners(model_recombination.fuse(states[0], states, return_all=True))
    assert first != owners(model_recombination.fuse(states[0], states, return_all=True, seed=1))
    turned = [{key: state[key] for key in reversed(KEYS)} for state in states]
    torch.manual_seed(5)
    assert owners(model_recombination.fuse(turned[0], turned, return_all=True)) == first


def test_every_model_is_as_likely_as_another():
    states = marked(3)
    found = (owners([model_recombination.fuse(states[0], states, seed=seed)]) for seed in range(600))
    counts = Counter(owner["norm.weight"][0] for owner in found)
    assert all(abs(counts[index] - 200) < 5 * (600 * 2 / 9) ** 0.5 for index in range(3))


def test_wrong_hyperparameters_are_named():
    states = marked(2)
    with pytest.raises(ParameterError, match="unit = 'layer' is not known; allowed: 'block', 'tensor'"):
        model_recombination.fuse(states[0], states, unit="layer")
    for seed in (0.5, True):
        with pytest.raises(ParameterError, match=r"seed = .* must be an integer"):
            model_recombination.fuse(states[0], states, seed=seed)
