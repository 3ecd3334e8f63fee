"""Rooms drawn at random, and what a camera in them sees: a picture, and for every pixel class, depth and normal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fusionlib.zoo.making.raycast import Array, Ball, Body, Box, Column, Look, blocked, nearest

CLASSES = ("floor", "ceiling", "wall", "window", "box", "ball", "column", "table")
PATTERNS = ("plain", "stripes", "checks")
OBJECTS = ("box", "ball", "column", "table")
HEIGHT, WIDTH = 48, 64  # pixels
UNLABELLED = 255  # in a stored picture of labels


@dataclass(frozen=True)
class Room:
    """One scene.

    Attributes:
        bodies: the room itself, then everything in it; a table is five boxes.
        walls: of the room's inside, the looks of (walls, floor, ceiling).
        openings: (axis, sign, low, high, kind): rectangles on a wall, a "window" or a "door" that nothing is seen
            behind.
        eye: the camera's place; view (3, 3): its axes right, up and towards the viewer, as rows.
        reach: half the picture's width, at distance 1.
        lamp: a light's place; glow: its strength; ambient: light from everywhere.
        counts: how many of each of ``OBJECTS`` there are, seen or not.
    """

    bodies: tuple[Body, ...]
    walls: tuple[Look, Look, Look]
    openings: tuple[tuple[int, int, Array, Array, str], ...]
    eye: Array
    view: Array
    reach: float
    lamp: Array
    glow: float
    ambient: float
    counts: dict[str, int]


@dataclass(frozen=True)
class Picture:
    """What was seen.

    Attributes:
        image: uint8 (H, W, 3).
        label: int (H, W), an index of ``CLASSES``, -1 in doors.
        depth: (H, W), metres along the camera's axis; 0 where a sensor would see none: doors and windows.
        normal: (H, W, 3), unit vectors, x to the right, y up, z to the viewer; 0 where depth is 0.
    """

    image: Array
    label: Array
    depth: Array
    normal: Array


def draw_room(seed: int) -> Room:
    """The room of this seed."""
    rng = np.random.default_rng(seed)
    half = np.array([rng.uniform(1.6, 3.0), rng.uniform(1.8, 3.4), rng.uniform(1.15, 1.6)])
    bodies: list[Body] = [Box(np.array([0.0, 0.0, half[2]]), half, 0.0, "room", _look(rng), inside=True)]
    eye = np.array([rng.uniform(-0.6, 0.6) * half[0], -half[1] + rng.uniform(0.15, 0.6), rng.uniform(1.1, 1.9)])
    aim = np.array([rng.uniform(-0.5, 0.5) * half[0], rng.uniform(0.2, 0.8) * half[1], rng.uniform(0.2, 1.0)])
    counts: dict[str, int] = {kind: 0 for kind in OBJECTS}
    taken: list[tuple[Array, float]] = [(eye[:2], 0.9)]
    for _ in range(rng.integers(3, 10)):
        kind = OBJECTS[rng.integers(len(OBJECTS))]
        size = rng.uniform(0.22, 0.6)
        at = np.array([rng.uniform(-1, 1) * (half[0] - size), rng.uniform(-1, 1) * (half[1] - size)])
        if all(np.linalg.norm(at - other) > size * 1.3 + far for other, far in taken):
            taken.append((at, size * 1.3))
            counts[kind] += 1
            bodies += _object(kind, at, size, rng)
    right = np.cross(aim - eye, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    back = (eye - aim) / np.linalg.norm(eye - aim)
    return Room(
        bodies=tuple(bodies),
        walls=(_look(rng), _look(rng), _look(rng, light=0.6)),
        openings=_openings(half, rng),
        eye=eye,
        view=np.stack([right, np.cross(back, right), back]),
        reach=rng.uniform(0.6, 0.85),
        lamp=np.array([rng.uniform(-0.7, 0.7) * half[0], rng.uniform(-0.7, 0.7) * half[1], 1.9 * half[2]]),
        glow=rng.uniform(0.8, 1.4),
        ambient=rng.uniform(0.25, 0.5),
        counts=counts,
    )


def render(room: Room, seed: int, *, smooth: bool = True) -> Picture:
    """The picture of a room, with sensor noise of this seed; exact truths at the centre of every pixel.

    Args:
        smooth: four rays per pixel, which smooth edges in the picture (never in the truths); else one.
    """
    rng = np.random.default_rng([seed, 1])
    offsets = (-0.25, 0.25) if smooth else (0.0,)
    shades = [_shade(room, _rays(room, down, right)) for down in offsets for right in offsets]
    image = np.mean(shades, axis=0) * rng.uniform(0.85, 1.15) + rng.normal(0, 0.008, (HEIGHT * WIDTH, 3))
    rays = _rays(room, 0.0, 0.0)
    index, hits = nearest(room.bodies, room.eye, rays)
    kinds = _kinds(room, index, room.eye + hits.distance[:, None] * rays, hits.normal)
    label = np.array([CLASSES.index(kind) if kind != "door" else -1 for kind in kinds])
    seen = (kinds != "door") & (kinds != "window")
    shape = HEIGHT, WIDTH
    return Picture(
        image=(image.clip(0, 1).reshape(*shape, 3) * 255).round().astype(np.uint8),
        label=label.reshape(shape),
        depth=np.where(seen, hits.distance, 0.0).reshape(shape),  # rays reach 1 along the axis, so t is the depth
        normal=np.where(seen[:, None], hits.normal @ room.view.T, 0.0).reshape(*shape, 3),
    )


def _rays(room: Room, down: float, right: float) -> Array:
    """Directions (H W, 3) through the pixels, each of length 1 along the camera's axis."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH].reshape(2, -1)
    across = (columns + 0.5 + right) / WIDTH * 2 - 1
    upwards = (1 - (rows + 0.5 + down) / HEIGHT * 2) * HEIGHT / WIDTH
    flat = np.stack([across * room.reach, upwards * room.reach, np.full(len(rows), -1.0)], axis=1)
    return flat @ room.view


def _shade(room: Room, rays: Array) -> Array:
    """Colours (n, 3): a lamp with shadows and distance, light from everywhere, a bright window, a dark door."""
    index, hits = nearest(room.bodies, room.eye, rays)
    points = room.eye + hits.distance[:, None] * rays
    kinds = _kinds(room, index, points, hits.normal)
    looks = (*room.walls, *(body.look for body in room.bodies[1:]))
    surface = index + 2
    for place, kind in enumerate(("wall", "floor", "ceiling")):
        surface[kinds == kind] = place
    colour = np.zeros_like(points)
    for place in np.unique(surface[(kinds != "door") & (kinds != "window")]):
        colour[surface == place] = looks[place].at(hits.place[surface == place])
    way = room.lamp - points
    far = np.linalg.norm(way, axis=1)
    facing = (way * hits.normal).sum(axis=1).clip(0) / far
    lit = facing * room.glow / (1 + 0.15 * far**2)
    lit[blocked(room.bodies[1:], points + 1e-4 * hits.normal, room.lamp)] = 0
    colour *= (room.ambient + lit)[:, None]
    colour[kinds == "window"] = [0.82, 0.9, 1.0]
    colour[kinds == "door"] = 0.04
    return colour


def _kinds(room: Room, index: Array, points: Array, normal: Array) -> Array:
    names = np.array([body.kind for body in room.bodies])
    kinds = names[index].astype("<U8")
    inside = index == 0
    kinds[inside] = "wall"
    kinds[inside & (normal[:, 2] > 0.5)] = "floor"
    kinds[inside & (normal[:, 2] < -0.5)] = "ceiling"
    for axis, sign, low, high, kind in room.openings:
        along = points[:, [1 - axis, 2]]
        here = inside & (normal[:, axis] * sign < -0.5) & (along >= low).all(axis=1) & (along <= high).all(axis=1)
        kinds[here] = kind
    return kinds


def _openings(half: Array, rng: np.random.Generator) -> tuple[tuple[int, int, Array, Array, str], ...]:
    """Up to a window and a door, on two of the three walls that the camera can see."""
    walls = [(1, 1), (0, 1), (0, -1)]
    first, second = rng.permutation(3)[:2]
    found = []
    for place, kind, likely in ((first, "window", 0.75), (second, "door", 0.5)):
        axis, sign = walls[place]
        wide, centre = rng.uniform(0.35, 0.8), rng.uniform(-0.5, 0.6) * half[1 - axis]
        low, high = (rng.uniform(0.7, 1.0), rng.uniform(1.5, 2.0)) if kind == "window" else (0.0, 1.95)
        if rng.random() < likely:
            found.append((axis, sign, np.array([centre - wide, low]), np.array([centre + wide, high]), kind))
    return tuple(found)


def _object(kind: str, at: Array, size: float, rng: np.random.Generator) -> list[Body]:
    look, yaw = _look(rng), rng.uniform(0, np.pi)
    if kind == "ball":
        return [Ball(np.array([*at, size]), size, kind, look)]
    if kind == "column":
        return [Column(np.array([*at, 0.0]), 0.6 * size, rng.uniform(0.5, 1.8), kind, look)]
    if kind == "box":
        half = np.array([size * rng.uniform(0.5, 1), size * rng.uniform(0.5, 1), rng.uniform(0.15, 0.6)])
        return [Box(np.array([*at, half[2]]), half, yaw, kind, look)]
    top, wide = rng.uniform(0.5, 0.8), np.array([size * 1.1, size * rng.uniform(0.7, 1.1)])
    parts: list[Body] = [Box(np.array([*at, top]), np.array([*wide, 0.04]), yaw, kind, look)]
    turn = np.array([[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]])
    for corner in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
        foot = at + turn @ (np.array(corner) * (wide - 0.06))
        parts.append(Box(np.array([*foot, top / 2]), np.array([0.045, 0.045, top / 2]), yaw, kind, look))
    return parts


def _look(rng: np.random.Generator, light: float = 0.15) -> Look:
    first = rng.uniform(light, 0.95, 3)
    second = (first * rng.uniform(0.5, 0.85)).clip(0, 1)
    return Look(first, second, PATTERNS[rng.choice(3, p=[0.5, 0.25, 0.25])], rng.uniform(0.15, 0.5))
