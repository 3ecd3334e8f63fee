"""Which candidate pictures are too near to a packed one.

Packing rounds some pictures to 16 or 24 colours, so equality of bytes proves nothing there; thumbnails do not
feel the rounding. All pictures here are grey bytes of one size, (n, height, width).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable

import numpy as np
from numpy.typing import NDArray

from fusionlib.core import ParameterError
from fusionlib.zoo.making.readers import Pictures

Mask = NDArray[np.bool_]
SIDE = 14
NEAR = 0.985  # cosine of thumbnails; the pack removed near-duplicates of the animals at the same value


def thumbnails(pictures: Pictures) -> NDArray[np.float32]:
    """Averages over the cells of a 14 x 14 grid, scaled to length 1: (n, 196); black pictures stay zero."""
    import torch

    if pictures.ndim != 3:
        raise ParameterError(f"Thumbnails are made of grey pictures (n, height, width), not {pictures.shape}.")
    small = torch.nn.functional.adaptive_avg_pool2d(torch.tensor(pictures)[:, None].float(), SIDE)
    return torch.nn.functional.normalize(small.flatten(1), dim=1).numpy()


def near_match(candidates: Pictures, packed: Pictures, *, cosine: float = NEAR, mirrored: bool = False) -> Mask:
    """Whether each candidate's thumbnail has at least this cosine with that of some packed picture.

    Args:
        candidates: (n, height, width).
        packed: (m, height, width).
        cosine: in [-1, 1].
        mirrored: whether a left-right mirror image counts too.

    Returns:
        (n,) booleans, true where the candidate must not be used.
    """
    ours, theirs = thumbnails(candidates), thumbnails(packed)
    if mirrored:
        theirs = np.concatenate([theirs, thumbnails(packed[:, :, ::-1].copy())])
    blocks = [(ours[start : start + 2048] @ theirs.T).max(axis=1) for start in range(0, len(ours), 2048)]
    return np.concatenate(blocks) >= cosine


def exact_match(candidates: Pictures, packed: Pictures) -> Mask:
    """Whether each candidate equals some packed picture pixel by pixel: (n,) booleans."""
    known = {picture.tobytes() for picture in packed}
    return np.array([picture.tobytes() in known for picture in candidates])


def chains(pictures: Pictures, *, cosine: float = NEAR) -> NDArray[np.int64]:
    """Number of the chain of near-duplicates each picture is in: (n,), the lowest index of its members.

    Two pictures are linked where their thumbnails, one of them perhaps mirrored, have at least this cosine.
    """
    small, turned = thumbnails(pictures), thumbnails(pictures[:, :, ::-1].copy())
    parent = np.arange(len(pictures))

    def root(k: int) -> int:
        while parent[k] != k:
            parent[k] = parent[parent[k]]
            k = parent[k]
        return k

    for start in range(0, len(small), 1024):
        block = small[start : start + 1024]
        close = np.maximum(block @ small.T, block @ turned.T) >= cosine
        for row, column in zip(*np.nonzero(close), strict=True):
            low, high = sorted((root(start + row), root(column)))
            parent[high] = low
    return np.array([root(k) for k in range(len(pictures))])


def shared_blocks(candidates: Pictures, packed: Pictures) -> Mask:
    """Whether a 3 x 3 window shares a block of 2 x 3 or 3 x 2 pixels, wherever it lies in either.

    Neighbouring windows of one scene overlap in such blocks.

    Args:
        candidates: (n, 3, 3, channels).
        packed: (m, 3, 3, channels).

    Returns:
        (n,) booleans, true where the candidate must not be used.
    """
    known = {block for window in packed for block in _blocks(window)}
    return np.array([any(block in known for block in _blocks(window)) for window in candidates])


def _blocks(window: Pictures) -> Iterable[Hashable]:
    yield from (("wide", window[k : k + 2].tobytes()) for k in range(2))
    yield from (("high", window[:, k : k + 2].tobytes()) for k in range(2))
