"""One sequential colour scale for texts and heat maps, even to the eye and safe for colour-blind readers.

A path from pale yellow to blue through the space OKLab (https://bottosson.github.io/posts/oklab/), walked at an even
pace: equal steps in value are equal steps in colour. It only gets darker, so it reads without hue, and it stays light
enough for black ink all the way: a text keeps one colour of letters.
"""

import math
from functools import cache

INK = "#111111"
"""Of letters upon the scale."""

SET_UP_COLOURS = ("#1f7bb8", "#cf5f14", "#2e8b57", "#9a5bb5", "#c94b4b", "#857a1e")
"""Lines and marks of set-ups, told apart by colour-blind readers too; 3:1 and more on white and on the dark page."""

STOPS = ((0.975, 0.045, 103.0), (0.87, 0.105, 135.0), (0.76, 0.105, 195.0), (0.635, 0.125, 245.0))
"""Lightness, chroma and hue (degrees) of OKLCh that the scale passes."""

_STEPS = 512


def shade(fraction: float) -> str:
    """Return the colour of a value between 0 (pale) and 1 (deep) as `#rrggbb`; values outside are clipped."""
    return _hex(oklab(fraction))


def oklab(fraction: float) -> tuple[float, float, float]:
    """Return the scale's point in OKLab, spaced evenly by distance."""
    path, lengths = _path()
    wanted = min(max(fraction, 0.0), 1.0) * lengths[-1]
    low, high = 0, len(lengths) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if lengths[middle] <= wanted else (low, middle)
    share = (wanted - lengths[low]) / (lengths[high] - lengths[low])
    first, second = path[low], path[high]
    return _between(first, second, share)


def contrast(first: str, second: str) -> float:
    """Return the contrast ratio of two `#rrggbb` colours, 1 to 21 (WCAG 2.2, "contrast ratio")."""
    light, dark = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@cache
def _path() -> tuple[list[tuple[float, float, float]], list[float]]:
    points = []
    for i in range(_STEPS + 1):
        at = i / _STEPS * (len(STOPS) - 1)
        k = min(int(at), len(STOPS) - 2)
        lightness, chroma, hue = _between(STOPS[k], STOPS[k + 1], at - k)
        angle = math.radians(hue)
        points.append((lightness, chroma * math.cos(angle), chroma * math.sin(angle)))
    lengths = [0.0]
    for i in range(_STEPS):
        lengths.append(lengths[-1] + math.dist(points[i], points[i + 1]))
    return points, lengths


def _between(
    first: tuple[float, float, float], second: tuple[float, float, float], share: float
) -> tuple[float, float, float]:
    a, b, c = (x + share * (y - x) for x, y in zip(first, second, strict=True))
    return a, b, c


def _hex(lab: tuple[float, float, float]) -> str:
    lightness, a, b = lab
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = (
        4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
    )
    return "#" + "".join(f"{round(255 * _encoded(min(max(value, 0.0), 1.0))):02x}" for value in linear)


def _encoded(linear: float) -> float:
    return 12.92 * linear if linear <= 0.0031308 else 1.055 * linear ** (1 / 2.4) - 0.055


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
