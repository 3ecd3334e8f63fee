"""Joined batches: texts of several lengths, one pass, every part under its own head."""

import pytest
import torch
from torch import nn

from fusionlib.core import ParameterError
from fusionlib.ops.joint import join, joinable, predict_jointly
from fusionlib.ops.modules import predict

SHORT = {"input_ids": torch.tensor([[3, 4]]), "attention_mask": torch.tensor([[1, 1]])}
LONG = {"input_ids": torch.tensor([[5, 6, 7], [8, 9, 0]]), "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}


class Sum(nn.Module):
    """The sum of a text's tokens so far, and twice that: (B, L, 2), as a causal language model answers."""

    def forward(self, input_ids, attention_mask):
        total = input_ids.cumsum(dim=1).float()
        return torch.stack([total, 2 * total], dim=-1)


def last(features, batch):
    place = batch["attention_mask"].sum(dim=1) - 1
    return features[torch.arange(len(features)), place]


def last_negated(features, batch):
    return -last(features, batch)


def test_short_texts_are_filled_up():
    joined = join([SHORT, LONG])
    assert joined["input_ids"].tolist() == [[3, 4, 0], [5, 6, 7], [8, 9, 0]]
    assert joined["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1], [1, 1, 0]]


def test_pictures_are_only_put_together():
    one, two = torch.randn(2, 3, 4, 4), torch.randn(1, 3, 4, 4)
    assert torch.equal(join([{"pixel_values": one}, {"pixel_values": two}])["pixel_values"], torch.cat([one, two]))


def test_every_part_is_scored_under_its_own_head():
    first, second = predict_jointly(Sum(), [last, last_negated], [SHORT, LONG])
    assert first.tolist() == [[7.0, 14.0]]
    assert second.tolist() == [[-18.0, -36.0], [-17.0, -34.0]]
    assert torch.equal(first, predict(Sum(), last, SHORT)) and torch.equal(second, predict(Sum(), last_negated, LONG))


def beside(batch, answers):
    """As a text-to-text model reads it: with a mask over the answers, of another size for every task."""
    return {**batch, "mask": torch.zeros(len(batch["input_ids"]), 1, answers, answers)}


class SumBeside(Sum):
    def forward(self, input_ids, attention_mask, mask):
        return super().forward(input_ids, attention_mask) + mask.shape[-1]


@pytest.mark.parametrize(
    "batches", [[], [SHORT, {"pixel_values": torch.zeros(1, 3, 2, 2)}], [beside(SHORT, 2), beside(LONG, 3)]]
)
def test_what_does_not_fit_is_refused(batches):
    assert not joinable(batches)
    with pytest.raises(ParameterError, match="one after the other"):
        join(batches)


def test_what_cannot_be_joined_is_predicted_one_after_the_other():
    first, second = predict_jointly(SumBeside(), [last, last_negated], [beside(SHORT, 2), beside(LONG, 3)])
    assert first.tolist() == [[9.0, 16.0]]
    assert second.tolist() == [[-21.0, -39.0], [-20.0, -37.0]]
