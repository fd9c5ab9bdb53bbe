"""The choices of a plan, from hand-made measurements."""

import dataclasses
import itertools
import math

import pytest
from helpers.layer_plans import line

from jax_maddness.nn.planning import verdict
from jax_maddness.nn.planning.allocate import allocate


@pytest.mark.parametrize(
    ("measured", "words"),
    [
        (line((4, 12.0, 0.1, None)), "C = 4 would be slower, 0.83x"),
        (line((4, 9.8, 0.1, None)), "C = 4 1.02x, less than 5%"),
        (line((4, 8.0, 0.1, None), noise=0.2), "C = 4 1.25x, within the noise of 40%"),
        (
            line((4, 12.0, 0.1, None), int8=4.0),
            "int8, which `products` leaves out, would be faster: 2.5x at NMSE 0.0001",
        ),
        (line((4, 5.0, 0.1, 0.3)), "C = 4 2.0x, but alone a drop of 0.3, more than 0.01"),
        (line((4, 5.0, 0.1, 0.0)), "others gain more"),
        (
            dataclasses.replace(line((4, 5.0, 0.1, 0.3)), unmeasured=True),
            "other products were not measured, as the time",
        ),
        (dataclasses.replace(line(), options=(), unmeasured=True), "nothing was measured, as the time was up"),
        (dataclasses.replace(line(), failed=("C = 4: not enough memory",)), "nothing was measured; C = 4: not enough"),
    ],
)
def test_a_layer_that_stays_says_why(measured, words):
    decided = verdict.decided(measured, None, 0.01, "others gain more")
    assert decided.choice is None
    assert decided.words.startswith("stays: ")
    assert words in decided.words


def test_a_layer_that_is_replaced_says_by_what():
    layer = line((4, 4.0, 0.1, 0.001), int8=2.0)
    decided = verdict.decided(layer, ("codes", 4), 0.01)
    assert (decided.by, decided.choice, decided.chosen.ms) == ("codes", 4, 4.0)
    assert decided.words.startswith("replaced, C = 4: 2.5x, alone a drop of 0.001; int8, which `products` leaves out")
    assert verdict.decided(layer, ("factors", 64), 0.01).words.startswith("replaced, whole int8 product")


def test_slower_codes_are_tried_only_where_they_are_closer():
    layer = line((4, 4.0, 0.1, None), (8, 6.0, 0.2, None), (16, 6.0, 0.05, None), (32, 6.0, 0.04, None))
    assert [o.size for o in verdict.worth_trying(layer)] == [4, 32]  # of two equally fast ones the closer


@pytest.mark.parametrize(
    ("shares", "small"),
    [
        ({"a": 0.5, "b": 0.004}, {"b"}),
        ({"a": 0.5, "b": 0.006}, set()),
        ({str(i): 0.004 for i in range(8)}, set("01234")),  # more of them would matter together
        ({}, set()),
    ],
)
def test_layers_whose_shares_cannot_matter(shares, small):
    assert verdict.folded(shares) == small


def test_amdahl():
    chosen = verdict.decided(line((4, 5.0, 0.1, 0.0)), ("codes", 4), 0.01)
    assert verdict.predicted([chosen, line()], 20.0) == pytest.approx(20 / 15)
    assert verdict.predicted([line()], 20.0) == 1


@pytest.mark.parametrize("limit", [0.0, 0.3, 0.4, math.inf])
def test_the_knapsack_has_the_least_time_within_the_limit(limit, rng):
    choices = [[(10.0, 0.0), *zip(rng.uniform(1, 9, 3), rng.uniform(0, 0.3, 3), strict=True)] for _ in range(5)]
    found = [layer[i] for layer, i in zip(choices, allocate(choices, limit), strict=True)]
    assert sum(cost for _, cost in found) <= limit
    mixes = [[sum(part) for part in zip(*mix, strict=True)] for mix in itertools.product(*choices)]
    best = min(ms for ms, cost in mixes if cost <= limit * 0.99)
    assert sum(ms for ms, _ in found) <= best + 1e-9
