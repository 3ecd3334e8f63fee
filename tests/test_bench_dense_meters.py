"""Meters of dense prediction, against values worked by hand; pixels without a truth count nothing."""

import math

import pytest
import torch

from fusionlib.bench.meters import make_meter
from fusionlib.core import ParameterError


def logits_for(guess, classes):
    return torch.nn.functional.one_hot(torch.tensor(guess), classes).permute(0, 3, 1, 2).float()


def test_segmentation_by_hand():
    meter = make_meter("segmentation")
    # image one: 3 known pixels, 2 right; image two: 2 known, 1 right; image three has no label at all
    meter.update(logits_for([[[0, 1], [1, 2]]], 4), torch.tensor([[[0, 1], [0, -1]]]))
    meter.update(
        logits_for([[[2, 1], [0, 0]], [[0, 0], [0, 0]]], 4), torch.tensor([[[2, 2], [-1, -1]], [[-1] * 2] * 2])
    )
    count, more = meter.result()
    assert count == (pytest.approx(2 / 3 + 1 / 2), 2)
    # class 0: 1 of 2 (truths 0 and 2nd 0 guessed 1); class 1: 1 of {right, 0 as 1, 2 as 1}; class 2: 1 of 2; 3 absent
    assert more == {"miou": pytest.approx((1 / 2 + 1 / 3 + 1 / 2) / 3), "pixel_accuracy": pytest.approx(3 / 5)}


def test_depth_by_hand():
    meter = make_meter("depth")
    truth = torch.tensor([[[[2.0, 4.0], [0.0, 1.0]]]])
    guess = torch.tensor([[[[2.4, 5.2], [9.0, -1.0]]]])
    meter.update(guess, truth)
    count, more = meter.result()
    assert count == (pytest.approx(1 / 3), 1)  # 2.4 / 2 = 1.2 is within, 5.2 / 4 = 1.3 is not, nothing below 0 is
    assert more["abs_err"] == pytest.approx((0.4 + 1.2 + 2.0) / 3)
    assert more["rel_err"] == pytest.approx((0.2 + 0.3 + 2.0) / 3)
    assert more["within_1.25"] == pytest.approx(1 / 3)


def test_a_depth_too_small_is_as_wrong_as_one_too_large():
    meter = make_meter("depth")
    meter.update(torch.full((1, 1, 1, 2), 1.0), torch.tensor([[[[1.24, 1.26]]]]))
    assert meter.result()[0] == (0.5, 1)


def test_normals_by_hand():
    def tilted(degrees):
        return [math.sin(math.radians(degrees)), 0.0, math.cos(math.radians(degrees))]

    angles = [0.0, 10.0, 20.0, 29.0, 90.0, 55.0]
    guess = torch.tensor([tilted(a) for a in angles]).T.reshape(1, 3, 2, 3) * 3  # their length is without effect
    truth = torch.tensor([[0.0, 0.0, 1.0]] * 5 + [[0.0] * 3]).T.reshape(1, 3, 2, 3)
    meter = make_meter("normal")
    meter.update(guess, truth)
    count, more = meter.result()
    assert count == (pytest.approx(4 / 5), 1)
    assert more["mean_angle"] == pytest.approx((0 + 10 + 20 + 29 + 90) / 5, abs=1e-4)
    assert more["median_angle"] == pytest.approx(20.0, abs=0.01)
    shares = {"within_11.25": 2 / 5, "within_22.5": 3 / 5, "within_30": 4 / 5}
    assert {name: more[name] for name in shares} == pytest.approx(shares)


def test_an_answer_that_is_no_number_is_wrong():
    nan, truth = float("nan"), torch.tensor([[[0, 0], [1, 1]]])
    meter = make_meter("segmentation")
    output = logits_for([[[0, 1], [1, 0]]], 2)
    output[0, :, 0, 0] = nan  # argmax would say class 0, which is right
    meter.update(output, truth)
    count, more = meter.result()
    # class 0: none of its 2 truths and 1 more guess; class 1: 1 of its 2 truths and 1 more guess
    assert count == (1 / 4, 1) and more == {"miou": pytest.approx((0 + 1 / 3) / 2), "pixel_accuracy": 1 / 4}
    meter = make_meter("depth")
    meter.update(torch.tensor([[[[nan, 2.0]]]]), torch.tensor([[[[3.0, 2.0]]]]))
    assert meter.result() == ((1 / 2, 1), {"abs_err": 3 / 2, "rel_err": 1 / 2, "within_1.25": 1 / 2})
    meter = make_meter("normal")
    up = [0.0, 0.0, 1.0]
    guess = torch.tensor([up, up, [nan, 0.0, 1.0], [0.0] * 3]).T.reshape(1, 3, 1, 4)  # no direction has zero either
    meter.update(guess, torch.tensor([up] * 4).T.reshape(1, 3, 1, 4))
    count, more = meter.result()
    assert count == (1 / 2, 1) and more["mean_angle"] == pytest.approx(45)


def test_a_score_is_by_image_and_an_error_by_pixel():
    meter = make_meter("depth")
    one, many = torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)
    one[0, 0, 0, 0] = 1.0
    meter.update(torch.full((1, 1, 2, 2), 3.0), one)  # its single pixel is wrong by 2
    meter.update(torch.ones(1, 1, 2, 2), many)
    count, more = meter.result()
    assert count == (1.0, 2) and more["abs_err"] == pytest.approx(2 / 5) and more["within_1.25"] == pytest.approx(4 / 5)


@pytest.mark.parametrize(
    ("metric", "output", "truth"),
    [
        ("segmentation", torch.zeros(1, 2, 2, 2), torch.full((1, 2, 2), -1)),
        ("depth", torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)),
        ("normal", torch.ones(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)),
    ],
)
def test_no_truth_at_all_is_said(metric, output, truth):
    meter = make_meter(metric)
    meter.update(output, truth)
    with pytest.raises(ParameterError, match="none of the images has a pixel with a truth"):
        meter.result()
