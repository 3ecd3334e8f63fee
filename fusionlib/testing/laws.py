"""Laws of methods that fuse state dicts, and of ensembles."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fusionlib.core import FusionMethod, StateDict
from fusionlib.testing.tiny import assert_same_weights, cast, hyperparameters, tiny_model, tiny_models


def keeps_keys_shapes_and_dtypes(method: FusionMethod) -> None:
    """Law 1a: the result has the pretrained keys, shapes and dtypes; integer buffers are the pretrained ones."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        pretrained, finetuned = tiny_models(dtype=dtype)
        fused = _fuse(method, pretrained, finetuned)
        assert list(fused) == list(pretrained), "keys or their order changed"
        for key, value in pretrained.items():
            assert fused[key].shape == value.shape and fused[key].dtype == value.dtype, key
            if not value.is_floating_point():
                assert torch.equal(fused[key], value), f"{key} is an integer buffer and changed"


def leaves_inputs_alone(method: FusionMethod) -> None:
    """Law 1b: no input changes, and no output shares memory with an input."""
    pretrained, finetuned = tiny_models()
    before = [{key: value.clone() for key, value in state.items()} for state in (pretrained, *finetuned)]
    fused = _fuse(method, pretrained, finetuned)
    for value in fused.values():
        value.zero_()
    for state, copy in zip((pretrained, *finetuned), before, strict=True):
        assert_same_weights(state, copy, rtol=0, atol=0)


def same_seed_same_bits(method: FusionMethod) -> None:
    """Law 1c: two calls give the same bits."""
    assert_same_weights(_fuse(method, *tiny_models()), _fuse(method, *tiny_models()), rtol=0, atol=0)


def copies_of_pretrained_change_nothing(method: FusionMethod) -> None:
    """Law 2: T copies of the pretrained model give the pretrained model."""
    pretrained, _ = tiny_models()
    assert_same_weights(_fuse(method, pretrained, [pretrained] * 3), pretrained)


def order_is_without_effect(method: FusionMethod) -> None:
    """Law 3: permuting the models changes nothing, where the card says ``symmetric``; else it does."""
    pretrained, finetuned = tiny_models()
    fused, reversed_ = _fuse(method, pretrained, finetuned), _fuse(method, pretrained, finetuned[::-1])
    if method.card.symmetric:
        assert_same_weights(fused, reversed_)
    else:
        assert any(not torch.allclose(fused[key].double(), reversed_[key].double()) for key in fused)


def separates_at_its_scope(method: FusionMethod) -> None:
    """Law 4: for scope ``tensor`` or ``element``, fusing some keys gives those keys of the fused whole."""
    if method.card.scope == "model":
        return
    pretrained, finetuned = tiny_models()
    some = list(pretrained)[::2]
    part = _fuse(method, _subset(pretrained, some), [_subset(state, some) for state in finetuned])
    assert_same_weights(part, _subset(_fuse(method, pretrained, finetuned), some), rtol=0, atol=0)


def half_precision_agrees(method: FusionMethod) -> None:
    """Law 5: bfloat16 and float16 inputs give the float32 result of the same numbers, rounded once."""
    for dtype in (torch.bfloat16, torch.float16):
        pretrained, finetuned = tiny_models(dtype=dtype)
        half = _fuse(method, pretrained, finetuned)
        full = _fuse(method, cast(pretrained, torch.float32), [cast(state, torch.float32) for state in finetuned])
        assert_same_weights(half, cast(full, dtype), rtol=0, atol=0)


def one_model_alone_comes_back(method: FusionMethod) -> None:
    """Law 6: at the card's ``identity`` hyper-parameters one fine-tuned model alone is returned."""
    if method.card.identity is None:
        return
    pretrained, finetuned = tiny_models(num_models=1)
    fused = method.fuse(pretrained, finetuned, **method.card.identity)
    expected = {k: v if v.is_floating_point() else pretrained[k] for k, v in finetuned[0].items()}
    assert_same_weights(fused, expected)


def tied_weights_stay_tied(method: FusionMethod) -> None:
    """Tied tensors count once and come back as one tensor."""
    pretrained, finetuned = tiny_models()
    for state in (pretrained, *finetuned):
        state["tied"] = state["0.weight"]
    fused = _fuse(method, pretrained, finetuned)
    assert fused["tied"].data_ptr() == fused["0.weight"].data_ptr()
    untied = _fuse(method, *tiny_models())
    assert_same_weights(_subset(fused, list(untied)), untied, rtol=0, atol=0)


def infinite_constants_stay(method: FusionMethod) -> None:
    """What is infinite and the same in all models comes back as it is, and changes nothing else."""
    pretrained, finetuned = tiny_models()
    without = _fuse(method, pretrained, finetuned)
    mask = torch.full((3, 3), -torch.inf).triu(1)
    for state in (pretrained, *finetuned):
        state["mask"] = mask.clone()
    fused = _fuse(method, pretrained, finetuned)
    assert torch.equal(fused["mask"], mask) and fused["mask"].data_ptr() != pretrained["mask"].data_ptr()
    assert_same_weights(_subset(fused, list(without)), without, rtol=0, atol=0)


def agrees_on_the_gpu(method: FusionMethod) -> None:
    """Law 5, second half: a GPU gives what the CPU gives; nothing to check where there is none."""
    if not torch.cuda.is_available():
        return
    pretrained, finetuned = tiny_models()
    moved = [{key: value.cuda() for key, value in state.items()} for state in (pretrained, *finetuned)]
    fused = {key: value.cpu() for key, value in _fuse(method, moved[0], moved[1:]).items()}
    assert_same_weights(fused, _fuse(method, pretrained, finetuned))


def copies_answer_as_one(method: FusionMethod) -> None:
    """T copies of one model answer as that model alone does; so does the one model alone."""
    member = tiny_model(1)
    alone = member(input=torch.linspace(-1, 1, 12).reshape(4, 3)).detach()
    for count in (1, 3):
        torch.testing.assert_close(_outputs(method, [member] * count), alone)


def order_of_members_is_without_effect(method: FusionMethod) -> None:
    """Permuting the members changes no answer, where the card says ``symmetric``."""
    members = [tiny_model(seed) for seed in (1, 2, 3)]
    if method.card.symmetric:
        torch.testing.assert_close(_outputs(method, members), _outputs(method, members[::-1]))


def leaves_members_alone(method: FusionMethod) -> None:
    """Members in training mode answer as in evaluation mode, and keep weights, statistics and mode."""
    members = [tiny_model(seed) for seed in (1, 2, 3)]
    expected = _outputs(method, members)
    for member in members:
        member.train()
    before = [{key: value.clone() for key, value in member.state_dict().items()} for member in members]
    torch.testing.assert_close(_outputs(method, members), expected, rtol=0, atol=0)
    for member, copy in zip(members, before, strict=True):
        assert_same_weights(member.state_dict(), copy, rtol=0, atol=0)
        assert all(module.training for module in member.modules())
        assert all(parameter.requires_grad for parameter in member.parameters())


def _outputs(method: FusionMethod, members: Sequence[nn.Module]) -> Tensor:
    inputs = torch.linspace(-1, 1, 12).reshape(4, 3)
    with torch.no_grad():
        fused = method.fuse(tiny_model(), list(members), **hyperparameters(method, len(members)))
        return fused(input=inputs)


def _fuse(method: FusionMethod, pretrained: StateDict, finetuned: Sequence[StateDict]) -> StateDict:
    return method.fuse(pretrained, list(finetuned), **hyperparameters(method, len(finetuned)))


def _subset(state: StateDict, keys: Sequence[str]) -> StateDict:
    return {key: state[key] for key in keys}
