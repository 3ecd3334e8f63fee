"""BatchNorm's statistics measured again, against a hand computation; and what merges make of whole-number buffers."""

import pytest
import torch
from torch import nn

from fusionlib import methods
from fusionlib.core import ParameterError
from fusionlib.ops.batch_norm import batch_norms, reestimate


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.drop = nn.Dropout(0.5)
        self.last = nn.BatchNorm1d(2)

    def forward(self, x):
        return self.last(self.drop(self.norm(x)))


def batches():
    return [{"x": torch.tensor([[0.0, 2.0], [4.0, 2.0]])}, {"x": torch.tensor([[1.0, 0.0], [3.0, 6.0]])}]


def test_statistics_are_the_means_over_batches():
    model = Net().eval()
    model.norm.running_mean.fill_(9.0)
    model.norm.num_batches_tracked.fill_(7)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    again = reestimate(model, batches())
    assert again.norm.running_mean.tolist() == [(2 + 2) / 2, (2 + 3) / 2]
    assert again.norm.running_var.tolist() == [(8 + 2) / 2, (0 + 18) / 2]  # unbiased: the squares over n - 1
    # the second layer sees each batch as the first one gives it in training, without dropout: -1 and 1 or near
    torch.testing.assert_close(again.last.running_mean, torch.zeros(2), atol=1e-6, rtol=0)
    assert again.last.running_var[0].item() == pytest.approx(2.0, abs=1e-4)
    assert again.norm.num_batches_tracked == 7 and again.norm.momentum == model.norm.momentum == 0.1
    assert not again.training and not again.norm.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_it_does_not_depend_on_what_was_there():
    model, other = Net().eval(), Net().eval()
    other.norm.running_var.fill_(50.0)
    one, two = reestimate(model, batches()), reestimate(other, batches())
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ParameterError, match="no BatchNorm layer"):
        reestimate(nn.Linear(2, 2), batches())
    with pytest.raises(ParameterError, match="at least one batch"):
        reestimate(Net(), [])
    assert set(batch_norms(Net())) == {"norm", "last"}


@pytest.mark.parametrize("name", ["simple_average", "task_arithmetic", "ties_merging", "weighted_average"])
def test_merges_fuse_statistics_and_keep_whole_numbers(name):
    states = []
    for count in (3, 5, 9):
        model = Net()
        model.norm.num_batches_tracked.fill_(count)
        model.norm.running_mean.fill_(float(count))
        states.append(model.state_dict())
    given = {"weights": [1, 1]} if name == "weighted_average" else {}
    fused = methods.get(name).fuse(states[0], states[1:], **given)
    assert fused["norm.num_batches_tracked"] == 3 and fused["norm.num_batches_tracked"].dtype == torch.int64
    assert not torch.equal(fused["norm.running_mean"], states[0]["norm.running_mean"])
    Net().load_state_dict(fused)
