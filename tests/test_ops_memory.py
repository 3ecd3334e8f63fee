"""The memory of a fused model: as any other, and taken in one piece only where that is worth it."""

import mmap

import pytest
import torch
from safetensors.torch import load_file, save_file

from fusionlib.methods import task_arithmetic
from fusionlib.ops.memory import fresh_like

LARGE = {"a": torch.ones(1500, 1501), "b": torch.ones(3, dtype=torch.float64), "c": torch.ones(0), "d": torch.ones(())}


@pytest.mark.parametrize("state", [LARGE, {key: LARGE[key] for key in "bcd"}], ids=["large", "small"])
def test_as_asked_for(state):
    fresh = fresh_like(state)
    assert {key: (t.shape, t.dtype) for key, t in fresh.items()} == {k: (t.shape, t.dtype) for k, t in state.items()}
    assert all(tensor.is_contiguous() and not tensor.requires_grad for tensor in fresh.values())
    for number, tensor in enumerate(fresh.values()):
        tensor.fill_(number)  # none lies on another
    assert all(bool((tensor == number).all()) for number, tensor in enumerate(fresh.values()))


def test_a_transposed_tensor_gives_a_contiguous_one_and_devices_stay():
    fresh = fresh_like({"t": torch.ones(2000, 1000).T, "meta": torch.ones(2000, 1000, device="meta")})
    assert fresh["t"].shape == (1000, 2000) and fresh["t"].is_contiguous()
    assert fresh["meta"].device.type == "meta"


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="memory in one piece is for Linux")
def test_in_one_piece_yet_each_tensor_with_its_own_storage(tmp_path):
    fresh = fresh_like(LARGE)
    apart = fresh["b"].data_ptr() - fresh["a"].data_ptr()
    assert 0 <= apart - 4 * 1500 * 1501 < 64 and fresh["b"].data_ptr() % 64 == 0
    assert fresh["a"].untyped_storage().nbytes() == 4 * 1500 * 1501
    for tensor in fresh.values():
        tensor.fill_(2)
    save_file(fresh, tmp_path / "fused.safetensors")  # refuses tensors that share storage
    saved = load_file(tmp_path / "fused.safetensors")
    assert saved.keys() == fresh.keys() and all(torch.equal(saved[key], fresh[key]) for key in fresh)


def test_one_tensor_outlives_the_others():
    base = {"w": torch.randn(1500, 1500), "v": torch.randn(1500)}
    fused = task_arithmetic.fuse(base, [{key: 2 * value for key, value in base.items()}], scale=1.0)
    kept = fused.pop("v")
    fused.clear()
    again = [torch.zeros(1500, 1500) for _ in range(4)]  # would take the memory, were it free
    assert torch.allclose(kept, 2 * base["v"]) and len(again) == 4
