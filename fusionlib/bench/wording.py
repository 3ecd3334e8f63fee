"""Words that follow from numbers, for prose that compares: it keeps on the right side when the numbers change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

ROUNDING = 0.05  # what is shown with one decimal as 0.0 is no change


def verb(change: float, up: str, down: str, same: str, within: float = ROUNDING) -> str:
    """``up``, ``down``, or ``same`` where the change is no larger than ``within``.

    Args:
        change: a difference, such as one in points.
        within: half the width of the interval of this very difference; without one, what rounds to nothing. Half
            widths of the two accuracies do not tell: methods are measured on the same examples.
    """
    if abs(change) <= within:
        return same
    return up if change > 0 else down


def beside(points: float) -> str:
    """Where a number stands that is so many points more than another: "1.4 points above", "level with"."""
    return verb(points, f"{points:.1f} points above", f"{-points:.1f} points below", "level with")


def listed(names: Iterable[str], none: str = "none") -> str:
    """Names as a sentence has them: "a", "a and b", "a, b and c"."""
    *first, last = list(names) or [none]
    return f"{', '.join(first)} and {last}" if first else last


def numbered(values: Mapping[str, float], fmt: str = "{:+.1f}", none: str = "none") -> str:
    """Names with their numbers, the largest first: "mnist (+3.1) and letters (-2.0)", with a sign for minus."""
    ordered = sorted(values, key=lambda name: values[name], reverse=True)
    return listed([f"{name} ({fmt.format(values[name])})".replace("(-", "(\N{MINUS SIGN}") for name in ordered], none)


def edge(found: Mapping[float, float]) -> str:
    """Where the best of some values stands among them, as a sentence: the last one on its side need be no optimum.

    Args:
        found: value that was tried -> its score, the larger the better.
    """
    best = max(found, key=lambda value: found[value])
    if len(found) == 1:
        return "No other value was tried."
    if sum(score == found[best] for score in found.values()) > 1:
        return "Others that were tried do as well."
    if best not in (min(found), max(found)):
        return "It lies inside the range that was tried."
    if best == min(found) == 0:
        return "It is the lowest there is."
    side, beyond = ("lowest", "lower") if best == min(found) else ("highest", "higher")
    return f"It is the {side} of the {len(found)} that were tried, so a {beyond} one may do better still."
