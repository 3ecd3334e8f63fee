"""Rays against boxes, balls and columns: where each ray ends first, on what, and which way that surface faces.

Lengths are metres. World axes: x and y along the floor, z up. Everything is float64, so that rendering the same
scene again gives the same picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

FAR = np.inf
NEAR = 1e-6
Array = np.ndarray


@dataclass(frozen=True)
class Hits:
    """What n rays met on a body: distances (n,), inf for a miss; outward normals (n, 3); pattern coordinates (n, 2)."""

    distance: Array
    normal: Array
    place: Array


@dataclass(frozen=True)
class Look:
    """Colours of a surface in [0, 1], and the pattern that alternates them every ``size`` metres."""

    first: Array = field(repr=False)
    second: Array = field(repr=False)
    pattern: str = "plain"  # or "checks", "stripes"
    size: float = 0.5

    def at(self, place: Array) -> Array:
        """Colours (n, 3) at pattern coordinates (n, 2)."""
        cells = np.floor(place / self.size).astype(int)
        odd = {"plain": cells[:, 0] * 0, "stripes": cells[:, 0] % 2, "checks": cells.sum(axis=1) % 2}[self.pattern]
        return np.where(odd[:, None] == 1, self.second, self.first)


@dataclass(frozen=True)
class Box:
    """A box turned by ``yaw`` about the vertical; seen from ``inside`` it is a room."""

    centre: Array
    half: Array
    yaw: float
    kind: str
    look: Look
    inside: bool = False

    def hit(self, origin: Array, rays: Array) -> Hits:
        """Where rays from one origin (3,) or from their own (n, 3) enter, or leave from inside."""
        turn = _turned(self.yaw)
        start, step = (origin - self.centre) @ turn, rays @ turn
        step = np.where(np.abs(step) < 1e-12, 1e-12, step)
        one, two = (-self.half - start) / step, (self.half - start) / step
        enter, leave = np.minimum(one, two), np.maximum(one, two)
        axis = leave.argmin(axis=1) if self.inside else enter.argmax(axis=1)
        first, last = enter.max(axis=1), leave.min(axis=1)
        distance = last if self.inside else np.where((first <= last) & (first > NEAR), first, FAR)
        normal = -np.eye(3)[axis] * np.sign(step)
        at = start + np.where(np.isfinite(distance), distance, 0.0)[:, None] * step
        others = np.array([[1, 2], [0, 2], [0, 1]])[axis]
        return Hits(distance, normal @ turn.T, np.take_along_axis(at, others, axis=1))


@dataclass(frozen=True)
class Ball:
    """A sphere."""

    centre: Array
    radius: float
    kind: str
    look: Look

    def hit(self, origin: Array, rays: Array) -> Hits:
        """See :meth:`Box.hit`."""
        start = np.broadcast_to(origin - self.centre, rays.shape)
        distance = _quadratic(rays, start, self.radius)
        normal = (start + np.where(np.isfinite(distance), distance, 0.0)[:, None] * rays) / self.radius
        around = np.arctan2(normal[:, 1], normal[:, 0]) * self.radius
        return Hits(distance, normal, np.stack([around, normal[:, 2] * self.radius], axis=1))


@dataclass(frozen=True)
class Column:
    """An upright cylinder from the floor to ``height``, with a flat top."""

    centre: Array
    radius: float
    height: float
    kind: str
    look: Look

    def hit(self, origin: Array, rays: Array) -> Hits:
        """See :meth:`Box.hit`."""
        start = np.broadcast_to(origin - self.centre, rays.shape)
        side = _quadratic(rays[:, :2], start[:, :2], self.radius)
        z = start[:, 2] + np.where(np.isfinite(side), side, 0.0) * rays[:, 2]
        side = np.where((z >= 0) & (z <= self.height), side, FAR)
        down = np.where(rays[:, 2] < -1e-12, rays[:, 2], np.nan)
        top = (self.height - start[:, 2]) / down
        reached = start[:, :2] + top[:, None] * rays[:, :2]
        on_top = (top > NEAR) & (np.square(reached).sum(axis=1) <= self.radius**2)
        top = np.where(on_top, top, FAR)
        distance = np.minimum(side, top)
        at = start + np.where(np.isfinite(distance), distance, 0.0)[:, None] * rays
        round_ = np.concatenate([at[:, :2] / self.radius, np.zeros((len(at), 1))], axis=1)
        flat = (top < side)[:, None]
        around = np.stack([np.arctan2(at[:, 1], at[:, 0]) * self.radius, at[:, 2]], axis=1)
        return Hits(distance, np.where(flat, [0.0, 0.0, 1.0], round_), np.where(flat, at[:, :2], around))


Body = Box | Ball | Column


def nearest(bodies: Sequence[Body], origin: Array, rays: Array) -> tuple[Array, Hits]:
    """(index of the body (n,), what was hit there); the first body must be met by every ray, as a room is."""
    found = [body.hit(origin, rays) for body in bodies]
    index = np.stack([hits.distance for hits in found]).argmin(axis=0)
    rows = np.arange(len(rays))
    return index, Hits(
        np.stack([hits.distance for hits in found])[index, rows],
        np.stack([hits.normal for hits in found])[index, rows],
        np.stack([hits.place for hits in found])[index, rows],
    )


def blocked(bodies: Sequence[Body], points: Array, target: Array) -> Array:
    """Whether something lies between each point (n, 3) and the target (3,)."""
    rays = target - points
    hidden = np.zeros(len(points), dtype=bool)
    for body in bodies:
        hidden |= body.hit(points, rays).distance < 1.0
    return hidden


def _turned(yaw: float) -> Array:
    cos, sin = np.cos(yaw), np.sin(yaw)
    return np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])


def _quadratic(rays: Array, start: Array, radius: float) -> Array:
    """The nearest positive root of |start + t rays| = radius; inf where there is none."""
    a, b = np.square(rays).sum(axis=1), (rays * start).sum(axis=1)
    under = b**2 - a * (np.square(start).sum(axis=1) - radius**2)
    root = (-b - np.sqrt(np.where(under > 0, under, 0.0))) / np.where(a > 0, a, 1.0)
    return np.where((under > 0) & (a > 0) & (root > NEAR), root, FAR)
