"""Laws of merges that are guided by data, and of mixes: both take modules and return one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fusionlib.core import FusionMethod
from fusionlib.ops.modules import output_tensor
from fusionlib.testing.tiny import (
    assert_same_weights,
    hyperparameters,
    tiny_data,
    tiny_model,
    tiny_pictures,
    tiny_transformer,
)


def guided_merge_keeps_the_architecture(method: FusionMethod) -> None:
    """A merge guided by data returns a module of the pretrained shape in evaluation mode, and changes no input.

    A mask of infinite numbers, the same in all models, stays as it is.
    """
    members = [tiny_model(seed).train() for seed in (0, 1, 2)]
    for member in members:
        member.register_buffer("mask", torch.full((2,), -torch.inf))
    before = [{key: value.clone() for key, value in member.state_dict().items()} for member in members]
    fused = _guided(method, members[0], members[1:])
    assert not fused.training and type(fused) is type(members[0])
    for key, value in before[0].items():
        found = fused.state_dict()[key]
        assert found.shape == value.shape and found.dtype == value.dtype, key
        assert value.is_floating_point() or torch.equal(found, value), f"{key} is an integer buffer and changed"
    assert torch.equal(fused.get_buffer("mask"), members[0].get_buffer("mask"))
    for parameter in fused.parameters():
        parameter.data.zero_()
    for member, copy in zip(members, before, strict=True):
        assert_same_weights(member.state_dict(), copy, rtol=0, atol=0)
        assert all(parameter.grad is None for parameter in member.parameters()), "a gradient was left behind"
        assert all(module.training for module in member.modules()), "the mode changed"


def guided_merge_repeats(method: FusionMethod) -> None:
    """The same data and seed give the same bits, whatever torch's own random state is."""
    members = [tiny_model(seed) for seed in (0, 1, 2)]
    torch.manual_seed(1)
    first = _guided(method, members[0], members[1:]).state_dict()
    torch.manual_seed(2)
    assert_same_weights(_guided(method, members[0], members[1:]).state_dict(), first, rtol=0, atol=0)


def guided_merge_of_copies(method: FusionMethod) -> None:
    """T copies of the pretrained model give the pretrained model."""
    base = tiny_model()
    fused = _guided(method, base, [tiny_model()] * 3)
    assert_same_weights(fused.state_dict(), base.state_dict(), rtol=1e-4, atol=1e-5)


def guided_merge_of_one(method: FusionMethod) -> None:
    """At the card's ``identity`` hyper-parameters one fine-tuned model alone is returned."""
    if method.card.identity is not None:
        only = tiny_model(1)
        fused = method.fuse(
            tiny_model(), [only], data=tiny_data(1), **{**hyperparameters(method, 1), **method.card.identity}
        )
        assert_same_weights(fused.state_dict(), only.state_dict(), rtol=1e-4, atol=1e-5)


def guided_merge_ignores_the_order(method: FusionMethod) -> None:
    """Permuting the models with their tasks changes nothing, where the card says ``symmetric``."""
    if method.card.symmetric:
        base, members = tiny_model(), [tiny_model(seed) for seed in (1, 2, 3)]
        fused = _guided(method, base, members)
        given = hyperparameters(method, 3)
        turned = method.fuse(base, [members[i] for i in (2, 0, 1)], data=tiny_data(3, order=(2, 0, 1)), **given)
        assert_same_weights(turned.state_dict(), fused.state_dict(), rtol=1e-3, atol=1e-5)


def mix_leaves_members_alone(method: FusionMethod) -> None:
    """The members' weights and mode are the same after mixing, and the result shares no memory with them."""
    base, members = tiny_transformer(0).train(), [tiny_transformer(seed).train() for seed in (1, 2)]
    before = [{k: v.clone() for k, v in member.state_dict().items()} for member in (base, *members)]
    mixed = _mixed(method, base, members)
    assert not any(module.training for module in mixed.modules())
    with torch.no_grad():
        for parameter in mixed.parameters():
            parameter.zero_()
    for member, copy in zip((base, *members), before, strict=True):
        assert_same_weights(member.state_dict(), copy, rtol=0, atol=0)
        assert all(module.training for module in member.modules())


def mix_repeats(method: FusionMethod) -> None:
    """The same seed gives the same answers, whatever torch's own random state is."""
    base, members = tiny_transformer(0), [tiny_transformer(seed) for seed in (1, 2)]
    torch.manual_seed(1)
    first = _answers(_mixed(method, base, members))
    torch.manual_seed(2)
    torch.testing.assert_close(_answers(_mixed(method, base, members)), first, rtol=0, atol=0)


def _guided(method: FusionMethod, base: nn.Module, members: Sequence[nn.Module]) -> nn.Module:
    return method.fuse(base, list(members), data=tiny_data(len(members)), **hyperparameters(method, len(members)))


def _mixed(method: FusionMethod, base: nn.Module, members: Sequence[nn.Module]) -> nn.Module:
    given = hyperparameters(method, len(members))
    if method.card.needs:
        given["data"] = tiny_pictures(len(members))
    return method.fuse(base, [] if method.card.fuses == "pretrained" else list(members), **given)


def _answers(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return output_tensor(model(pixel_values=torch.linspace(-1, 1, 384).reshape(2, 3, 8, 8)))
