"""Random distortions of batches of pictures, all of a batch at once.

Pictures are float tensors (n, channels, 32, 32) in [0, 1]; every function draws from the generator it is given.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor
from torch.nn import functional

LUMINANCE = (0.299, 0.587, 0.114)
GAP = 0.25  # least difference in luminance between a glyph and what is behind it


def uniform(generator: Generator, low: float, high: float, *shape: int) -> Tensor:
    """Random numbers from [low, high)."""
    return torch.rand(shape, generator=generator) * (high - low) + low


def chance(generator: Generator, probability: float, n: int) -> Tensor:
    """(n, 1, 1, 1) booleans, each true with this probability."""
    return torch.rand((n, 1, 1, 1), generator=generator) < probability


def warp(pictures: Tensor, generator: Generator, *, degrees: float, padding: str = "zeros") -> Tensor:
    """Rotate within +-degrees, scale by 0.8 to 1.2, shift by up to 0.24 of the half width, stretch and shear by 0.15.

    Args:
        pictures: (n, c, h, w).
        generator: source of randomness.
        degrees: largest rotation.
        padding: what lies outside, as ``grid_sample`` calls it: ``zeros``, ``border`` or ``reflection``.
    """
    n = len(pictures)
    angle = uniform(generator, -degrees, degrees, n) * math.pi / 180
    scale, aspect = uniform(generator, 0.8, 1.2, n), uniform(generator, 0.85, 1.15, n)
    shear, shift = uniform(generator, -0.15, 0.15, n), uniform(generator, -0.24, 0.24, n, 2)
    cos, sin = angle.cos(), angle.sin()
    wide, high = 1 / (scale * aspect), aspect / scale
    rows = [
        torch.stack([cos * wide, -sin * high + shear * cos * wide], dim=1),
        torch.stack([sin * wide, cos * high + shear * sin * wide], dim=1),
    ]
    matrix = torch.cat([torch.stack(rows, dim=1), shift[:, :, None]], dim=2)
    grid = functional.affine_grid(matrix, list(pictures.shape), align_corners=False)
    return functional.grid_sample(pictures, grid, padding_mode=padding, align_corners=False)


def flip(pictures: Tensor, generator: Generator) -> Tensor:
    """Mirror each picture left to right with probability one half."""
    return torch.where(chance(generator, 0.5, len(pictures)), pictures.flip(-1), pictures)


def jitter(pictures: Tensor, generator: Generator, *, light: float = 0.3, colour: float = 0.1) -> Tensor:
    """Change brightness and contrast by factors of 1 +- ``light``, and each channel by 1 +- ``colour``."""
    n = len(pictures)
    brightness = uniform(generator, 1 - light, 1 + light, n, 1, 1, 1)
    contrast = uniform(generator, 1 - light, 1 + light, n, 1, 1, 1)
    channels = uniform(generator, 1 - colour, 1 + colour, n, 3, 1, 1)
    mean = pictures.mean(dim=(1, 2, 3), keepdim=True)
    return (((pictures - mean) * contrast + mean) * brightness * channels).clamp(0, 1)


def noise(pictures: Tensor, generator: Generator, *, most: float = 0.06) -> Tensor:
    """Add Gaussian noise, of a standard deviation drawn per picture from [0, most)."""
    sigma = uniform(generator, 0, most, len(pictures), 1, 1, 1)
    return (pictures + sigma * torch.randn(pictures.shape, generator=generator)).clamp(0, 1)


def blur(pictures: Tensor, generator: Generator, *, probability: float = 0.2) -> Tensor:
    """Shrink some pictures to 8 x 8 and enlarge them again."""
    small = functional.adaptive_avg_pool2d(pictures, 8)
    soft = functional.interpolate(small, size=pictures.shape[-2:], mode="bilinear", align_corners=False)
    return torch.where(chance(generator, probability, len(pictures)), soft, pictures)


def invert_grey(pictures: Tensor, generator: Generator, *, probability: float = 0.4) -> Tensor:
    """Turn some (n, 3, h, w) pictures into their grey negatives."""
    grey = luminance(pictures).expand_as(pictures)
    return torch.where(chance(generator, probability, len(pictures)), 1 - grey, pictures)


def luminance(pictures: Tensor) -> Tensor:
    """(n, 3, h, w) to (n, 1, h, w)."""
    return (pictures * torch.tensor(LUMINANCE).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)


def colour_field(n: int, generator: Generator) -> Tensor:
    """Smooth random colours: (n, 3, 32, 32)."""
    coarse = uniform(generator, 0, 1, n, 3, 1, 1) + uniform(generator, -0.3, 0.3, n, 3, 3, 3)
    return functional.interpolate(coarse, size=32, mode="bicubic", align_corners=False).clamp(0, 1)


def permute_channels(pictures: Tensor, generator: Generator) -> Tensor:
    """Shuffle the three channels of each picture."""
    order = torch.rand((len(pictures), 3), generator=generator).argsort(dim=1)
    return pictures.gather(1, order[:, :, None, None].expand_as(pictures))


def beside(masks: Tensor, others: Tensor, generator: Generator, *, probability: float) -> Tensor:
    """Put parts of other glyphs at one side of some masks, cut off by the edge.

    Args:
        masks: (n, 1, 32, 32).
        others: the same shape.
        generator: source of randomness.
        probability: of having a neighbour.
    """
    n = len(masks)
    side = torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0)
    matrix = torch.zeros(n, 2, 3)
    matrix[:, 0, 0] = matrix[:, 1, 1] = 1
    matrix[:, 0, 2] = side * uniform(generator, 1.1, 1.5, n)  # in half widths: 8 to 14 columns are seen
    matrix[:, 1, 2] = uniform(generator, -0.15, 0.15, n)
    grid = functional.affine_grid(matrix, list(masks.shape), align_corners=False)
    neighbours = functional.grid_sample(others, grid, align_corners=False)
    return torch.where(chance(generator, probability, n), torch.maximum(masks, neighbours), masks)


def paint(masks: Tensor, behind: Tensor, generator: Generator) -> Tensor:
    """Glyphs in a random colour that stands out by :data:`GAP` in luminance from the mean of what is behind.

    Args:
        masks: (n, 1, 32, 32).
        behind: (n, 3, 32, 32).
        generator: source of randomness.
    """
    n, tries = len(masks), 12
    ground = luminance(behind).mean(dim=(1, 2, 3))
    inks = uniform(generator, 0, 1, n, tries, 3)
    inks = torch.cat([inks, (ground < 0.5).float().view(n, 1, 1).expand(n, 1, 3)], dim=1)  # black or white never fails
    apart = ((inks * torch.tensor(LUMINANCE)).sum(dim=2) - ground[:, None]).abs() >= GAP
    ink = inks[torch.arange(n), apart.int().argmax(dim=1)].view(n, 3, 1, 1)
    return masks * ink + (1 - masks) * behind
