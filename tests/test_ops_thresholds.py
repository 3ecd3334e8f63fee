"""The streamed order statistic equals ``kthvalue`` bit for bit, on kind and on unkind data."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusionlib.ops import thresholds
from fusionlib.ops.thresholds import kth_magnitude


def in_blocks(values, size):
    def magnitudes(step):
        return (block[::step] for block in values.split(size))

    return magnitudes


def data(kind: str, n: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(n, generator=generator).abs()
    return {
        "normal": noise,
        "heavy tails": noise**8,
        "mostly zero": noise * (noise > 1.5),
        "few values": (noise * 3).floor(),
        "sorted": noise.sort().values,
        "all equal": torch.full((n,), 0.25),
        "tiny": noise * 1e-42,
        "two scales": torch.cat([noise[: n // 2] * 1e-6, noise[n // 2 :]]),
    }[kind]


KINDS = ["normal", "heavy tails", "mostly zero", "few values", "sorted", "all equal", "tiny", "two scales"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_kthvalue(kind, dtype, monkeypatch):
    monkeypatch.setattr(thresholds, "_SAMPLE", 1 << 9)  # so that 20,000 numbers take the long way
    values = data(kind, 20_000).to(dtype)
    for k in (1, 2, 100, 10_000, 16_000, 19_999, 20_000):
        found = kth_magnitude(in_blocks(values, 1_000), len(values), k)
        assert torch.equal(found, values.kthvalue(k).values), (kind, k)


@pytest.mark.parametrize(("kind", "k"), [("mostly zero", 10_000), ("all equal", 7_000), ("few values", 5_000)])
def test_many_equal_values_cost_no_pass_per_bit(kind, k, monkeypatch):
    monkeypatch.setattr(thresholds, "_SAMPLE", 1 << 9)
    monkeypatch.setattr(thresholds, "_bisect", None)
    values = data(kind, 20_000)
    assert torch.equal(kth_magnitude(in_blocks(values, 1_000), len(values), k), values.kthvalue(k).values)


def test_a_bracket_that_misses_is_noticed(monkeypatch):
    monkeypatch.setattr(thresholds, "_SAMPLE", 1 << 9)
    values = data("normal", 20_000)
    wrong = torch.tensor(0.0), torch.tensor(1e-9)
    monkeypatch.setattr(thresholds, "_bracket", lambda *_: wrong)
    assert torch.equal(kth_magnitude(in_blocks(values, 999), 20_000, 7_000), values.kthvalue(7_000).values)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 2.0**100, width=32), min_size=1, max_size=60), st.data())
def test_bisection_alone(numbers, draw):
    values = torch.tensor(numbers, dtype=torch.float32)
    k = draw.draw(st.integers(1, len(numbers)))
    assert torch.equal(thresholds._bisect(in_blocks(values, 7), k), values.kthvalue(k).values)
