"""Stored pictures to RGB: every mode and orientation; a damaged one is named."""

from __future__ import annotations

import functools
import io
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fusionlib.core import CheckpointError
from fusionlib.zoo.rows import read_bytes
from fusionlib.zoo.task import Split

if TYPE_CHECKING:
    from PIL.Image import Image

LARGEST = 178_956_970  # pixels, above which PIL refuses a picture as a decompression bomb


def stored_picture(source: Split, index: int, cell: Mapping[str, Any] | None, task: str, mode: str | None) -> Image:
    """A picture of a split as RGB.

    Args:
        source: the split.
        index: of the example in it.
        cell: what the data hold of it: "bytes", or for a folder of pictures their "path".
        task: its name.
        mode: PIL's mode that the data set's own column asks for, if any.

    Raises: CheckpointError, naming the task and the row or file.
    """
    content = None if cell is None else cell.get("bytes")
    if content is None and cell is not None and source.builder == "imagefolder":
        row = index if source.rows is None else source.rows[index]
        content = read_bytes(source.files[row], source.hashes[row])
    if content is None:
        held = f"only a path ({cell['path']!r})" if cell and cell.get("path") else "no picture"
        raise CheckpointError(
            f"{source.place(index)} of task {task!r} holds {held}. A picture's bytes must be in the file itself: "
            "dataset.to_parquet(...) of a datasets.Image column puts them there."
        )
    try:
        return rgb(content, mode)
    except Exception as error:  # damaged pictures make PIL raise nearly anything
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise CheckpointError(
            f"{source.place(index)} of task {task!r} holds no picture that can be read: {_plainly(reason)}. Save it "
            "again, as PNG or JPEG, or leave it out."
        ) from error


def rgb(content: bytes, mode: str | None = None) -> Image:
    """The bytes of a picture, in any format that PIL reads, as RGB.

    Turned upright as its EXIF orientation says; of an animation the first frame; transparency is left out and what
    is beyond 8 bits is cut off, as PIL's ``convert("RGB")`` does and with it the image processors of transformers.
    Raises: whatever PIL raises; ValueError, for 32-bit or floating-point pixels that would be cut off.
    """
    import PIL.Image
    import PIL.ImageOps

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd metadata; what can't be decoded raises
        image: Image = PIL.Image.open(io.BytesIO(content), formats=_formats())
        image.load()
        if _turned(image):
            image = PIL.ImageOps.exif_transpose(image)
        if mode and mode != image.mode:
            image = image.convert(mode)
        if image.mode in ("I", "F"):
            _check_range(image)
        if image.mode.startswith("I;16") and image.mode != "I;16":
            image = image.convert("I")  # PIL makes of other byte orders something else than of its own
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")  # without it PIL warns, and gives the same colours
        return image.convert("RGB")


def _turned(image: Image) -> bool:
    import PIL.ExifTags

    try:
        return image.getexif().get(PIL.ExifTags.Base.Orientation) is not None
    except Exception:  # the metadata are damaged, the picture is not
        return False


def _check_range(image: Image) -> None:
    import numpy as np

    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 255) or (image.mode == "F" and 0 < high <= 1):
        raise ValueError(
            f"its pixels are {'floating-point' if image.mode == 'F' else '32-bit'} numbers from {low:g} to {high:g}, "
            "and which of them are black and white is not known; 0 to 255 is needed"
        )


@functools.cache
def _formats() -> tuple[str, ...]:
    """All that PIL can open, but for EPS, which it has another program run."""
    import PIL.Image

    PIL.Image.preinit()  # the common ones come first
    PIL.Image.init()
    return tuple(name for name in PIL.Image.ID if name != "EPS")


def _plainly(reason: str) -> str:
    return "it is of no known format" if reason.startswith("cannot identify image file") else reason
