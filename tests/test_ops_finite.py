"""Infinite constants, results that overflow, and variances below 0."""

import math
import threading

import pytest
import torch
from torch import nn

from fusionlib import methods, testing
from fusionlib.core import NegativeVariance, NonFiniteError
from fusionlib.methods import moe_upscaling, regmean, simple_average, task_arithmetic, ties_merging, we_moe
from fusionlib.ops import streaming
from fusionlib.ops.batch_norm import reestimate
from fusionlib.ops.blending import Blend
from fusionlib.ops.guided import with_weights
from fusionlib.ops.trim import global_trim
from fusionlib.ops.variances import unchecked_variances
from fusionlib.testing import tiny_data, tiny_model


def masked(*numbers):
    return {"mask": torch.tensor([0.0, -math.inf, -math.inf]), "w": torch.tensor(numbers)}


# d = 4 without the mask, density 0.5: the 2nd smallest magnitude is the threshold, three entries stay.
@pytest.mark.parametrize("block", [1, 2, 1 << 20])
def test_infinite_constants_have_no_rank_in_ties(block, monkeypatch):
    monkeypatch.setattr(streaming, "CPU_BLOCK", block)
    base, one = masked(0.0, 0.0, 0.0, 0.0), masked(4.0, 1.0, -3.0, 2.0)
    for order in ([one], [one, one]):
        fused = ties_merging.fuse(base, order, density=0.5)
        assert fused["w"].tolist() == [4.0, 0.0, -3.0, 2.0]
        assert torch.equal(fused["mask"], base["mask"])


def test_large_constants_do_not_overflow():
    lowest = torch.full((2, 2), torch.finfo(torch.float32).min)
    base, one = {"mask": lowest, "w": torch.zeros(2)}, {"mask": lowest.clone(), "w": torch.ones(2)}
    assert torch.equal(simple_average.fuse(base, [one] * 3)["mask"], lowest)


def test_what_is_infinite_in_some_models_only_is_named():
    base, one, two = masked(0.0), masked(1.0), masked(2.0)
    two["mask"] = torch.tensor([0.0, 0.0, -math.inf])
    for name in ("simple_average", "ties_merging", "model_recombination"):
        with pytest.raises(NonFiniteError, match=r"finetuned\[1\] has other values than .* under 'mask'"):
            methods.get(name).fuse(base, [one, two])
    nothing = {"mask": torch.tensor([math.nan])}
    with pytest.raises(NonFiniteError, match="'mask'"):
        simple_average.fuse(nothing, [nothing, nothing])


def test_a_model_in_two_precisions_is_trimmed_at_its_threshold():
    # ranked in float64; the entry at the threshold is in float32, whose next number below is much further
    base = {"wide": torch.zeros(2, dtype=torch.float64), "w": torch.zeros(2)}
    one = {"wide": torch.tensor([0.1, 3.0], dtype=torch.float64), "w": torch.tensor([0.2, 1.7])}
    kept = global_trim(base, [one], 0.25)  # 4 - 1 = 3rd smallest, 1.7
    assert kept(streaming.block_at(base, [one], "w", 0, 2)).tolist() == [[0.0, one["w"][1].item()]]
    assert kept(streaming.block_at(base, [one], "wide", 0, 2)).tolist() == [[0.0, 3.0]]


@pytest.mark.parametrize("trim", ["global", "tensor"])
def test_what_is_ranked_is_what_is_trimmed_when_another_model_is_wider(trim):
    # in float32 the change of 1e-4 over 1.0 is rounded, in float64 it is not
    base = {"w": torch.tensor([1.0, 1.0, 1.0, 1.0])}
    one = {"w": torch.tensor([1.0001, 1.0002, 1.0003, 1.0004])}
    other = {"w": base["w"].double()}
    wide = [{name: value.double() for name, value in state.items()} for state in (base, one, other)]
    narrow = ties_merging.fuse(base, [one, other], density=0.5, trim=trim)
    assert torch.equal(narrow["w"], ties_merging.fuse(wide[0], wide[1:], density=0.5, trim=trim)["w"].float())


def test_an_infinite_parameter_has_no_coefficient():
    base, one = tiny_model(), tiny_model(1)
    for model in (base, one):
        model.register_parameter("fixed", nn.Parameter(torch.tensor([math.inf])))
    blend = Blend(base, [one], 0.5, by_layer=True)
    blend.coefficients.fill_(0.25)
    blend.apply()
    assert "fixed" not in blend.names and blend.model.fixed.item() == math.inf
    assert all(bool(p.isfinite().all()) for name, p in blend.model.named_parameters() if name != "fixed")
    blend.coefficients.fill_(3e38)
    blend.apply()
    with pytest.raises(NonFiniteError, match=r"the fused values of '.*' overflow"):
        blend.finish()


def test_regmean_whose_equations_overflow():
    with pytest.raises(NonFiniteError, match=r"'0\.weight'.*smaller ridge"):
        regmean.fuse(tiny_model(), [tiny_model(1)], data=tiny_data(1), ridge=1e308)


def test_results_are_looked_at_in_one_place():
    base = tiny_model()
    with pytest.raises(NonFiniteError, match=r"the fused values of '3\.bias'"):
        with_weights(base, {**base.state_dict(), "3.bias": torch.full((4,), math.inf)})
    with pytest.raises(NegativeVariance, match=r"1\.running_var"):
        with_weights(base, {**base.state_dict(), "1.running_var": torch.full((5,), -1.0)})
    with pytest.raises(NonFiniteError, match=r"the fused values of '.*router\.weight'"):
        moe_upscaling.fuse(testing.tiny_transformer(), router_std=1e38)
    wide = [testing.tiny_transformer().half() for _ in range(2)]
    for model, value in zip(wide, (-6e4, 6e4), strict=True):  # their difference does not fit
        model.vision_model.encoder.layers[0].mlp.fc1.bias.data.fill_(value)
    with pytest.raises(NonFiniteError, match=r"the fused values of '.*task_vectors.fc1\.bias'"):
        we_moe.fuse(wide[0], wide[1:], data=testing.tiny_pictures(1), steps=0, scale=0.0)


def test_masks_do_not_keep_a_model_from_being_enlarged():
    model = testing.tiny_transformer()
    model.register_buffer("mask", torch.full((2,), -math.inf))
    model.register_parameter("frozen", nn.Parameter(torch.tensor([-math.inf]), requires_grad=False))
    enlarged = moe_upscaling.fuse(model, num_experts=2)
    assert enlarged.mask.tolist() == [-math.inf] * 2 and enlarged.frozen.item() == -math.inf
    model.frozen.requires_grad_(True)
    with pytest.raises(NonFiniteError, match=r"the pretrained model has 1 of 1 values .* under 'frozen'"):
        moe_upscaling.fuse(model, num_experts=2)


def net(variance):
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).eval()
    model[1].running_var.fill_(variance)
    return model


# 1 + 1 * ((0.2 - 1) + (0.3 - 1)) = -0.5
def test_a_variance_below_zero_is_named():
    base, models = net(1.0), [net(0.2).state_dict(), net(0.3).state_dict()]
    with pytest.raises(NegativeVariance, match=r"2 of 2 variances below 0 under '1.running_var', the lowest -0.5"):
        task_arithmetic.fuse(base.state_dict(), models, scale=1.0)
    task_arithmetic.fuse(base.state_dict(), models, scale=0.5)
    alone = [{name.removeprefix("1."): value for name, value in m.items()} for m in (base.state_dict(), *models)]
    with pytest.raises(NegativeVariance, match="under 'running_var'"):
        task_arithmetic.fuse(alone[0], alone[1:], scale=1.0)
    renamed = [{"log.running_var": m["1.running_var"]} for m in (base.state_dict(), *models)]  # no mean beside it
    assert task_arithmetic.fuse(renamed[0], renamed[1:], scale=1.0)["log.running_var"][0] < 0


def test_a_variance_that_is_measured_again_may_be_below_zero():
    base, models = net(1.0), [net(0.2).state_dict(), net(0.3).state_dict()]
    elsewhere = []

    def other_thread():
        try:
            task_arithmetic.fuse(base.state_dict(), models, scale=1.0)
        except NegativeVariance as error:
            elsewhere.append(error)

    with unchecked_variances():
        state = task_arithmetic.fuse(base.state_dict(), models, scale=1.0)
        thread = threading.Thread(target=other_thread)
        thread.start()
        thread.join()
    assert len(elsewhere) == 1
    again = reestimate(with_weights_again(base, state), [{"input": torch.arange(12.0).reshape(4, 3)}])
    assert bool((again[1].running_var > 0).all())
    with pytest.raises(NegativeVariance):
        task_arithmetic.fuse(base.state_dict(), models, scale=1.0)
    with pytest.raises(NonFiniteError, match="measured on these inputs hold"):
        reestimate(base, [{"input": torch.full((4, 3), math.inf)}])


def with_weights_again(base, state):
    with unchecked_variances():
        return with_weights(base, state)
