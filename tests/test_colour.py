"""The colour scale: even steps, darker all the way, black ink legible on all of it."""

import math
from itertools import pairwise

from layerbridge.colour import INK, SET_UP_COLOURS, contrast, oklab, shade

FRACTIONS = [i / 64 for i in range(65)]


def test_equal_steps_in_value_are_equal_steps_in_colour():
    steps = [math.dist(a, b) for a, b in pairwise(map(oklab, FRACTIONS))]
    assert max(steps) / min(steps) < 1.05


def test_the_scale_only_gets_darker():
    lightness = [oklab(fraction)[0] for fraction in FRACTIONS]
    assert all(a > b for a, b in pairwise(lightness))
    assert lightness[0] - lightness[-1] > 0.3


def test_ink_is_legible_on_the_whole_scale():
    assert min(contrast(shade(fraction), INK) for fraction in FRACTIONS) > 4.5
    assert contrast("#000000", "#ffffff") == 21


def test_values_outside_are_clipped():
    assert shade(-1) == shade(0)
    assert shade(2) == shade(1)


def test_set_ups_are_seen_on_white_and_on_the_dark_page():
    assert all(contrast(colour, paper) >= 3 for colour in SET_UP_COLOURS for paper in ("#ffffff", "#16181b"))
