"""The choices of a plan, from hand-made measurements."""

import dataclasses

import pytest
from helpers.layer_plans import line

from jax_maddness.nn.planning import verdict


@pytest.mark.parametrize(
    ("measured", "words"),
    [
        (line((4, 12.0, 0.1, None)), "codes would be slower, 0.83x"),
        (line((4, 9.8, 0.1, None)), "codes 1.02x, less than 5%"),
        (line((4, 8.0, 0.1, None), noise=0.2), "codes 1.25x, within the noise of 40%"),
        (line((4, 8.0, 0.1, None), int8=4.0), "int8 would be faster: 2.5x at NMSE 0.0001; codes 1.25x"),
        (line((4, 12.0, 0.1, None), int8=4.0), "int8 would be faster: 2.5x at NMSE 0.0001; codes 0.83x"),
        (line((4, 8.0, 0.1, None), low=4.0), "low rank 4 would be faster: 2.5x at NMSE 0.01; codes 1.25x"),
        (line((4, 5.0, 0.1, 0.3)), "codes 2.0x, but alone a drop of 0.3, more than 0.01"),
        (line((4, 5.0, 0.1, None)), "was not measured, as the time was up"),
        (dataclasses.replace(line(), options=()), "nothing was measured, as the time was up"),
    ],
)
def test_a_layer_that_does_not_gain_stays_and_the_plan_says_why(measured, words):
    assert verdict.accepted([measured], 0.01) == []
    decided = verdict.decided(measured, None, 0.01)
    assert decided.choice is None
    assert decided.words.startswith("stays: ")
    assert words in decided.words
    assert decided.unmeasured == ("time was up" in words)


def test_the_fastest_codes_within_the_drop_are_chosen():
    layer = line((2, 2.0, 0.3, 0.05), (4, 4.0, 0.1, 0.01), (8, 6.0, 0.05, 0.001))
    assert verdict.best(layer, 0.01).size == 4
    assert verdict.best(layer, 0.005).size == 8
    assert verdict.best(layer, 0.0005) is None
    decided = verdict.decided(layer, verdict.best(layer, 0.01), 0.01)
    assert (decided.choice, decided.chosen.ms) == (4, 4.0)
    assert "C = 4: 2.5x" in decided.words


def test_slower_codes_are_tried_only_where_they_are_closer():
    layer = line((4, 4.0, 0.1, None), (8, 6.0, 0.2, None), (16, 6.0, 0.05, None), (32, 6.0, 0.04, None))
    assert [o.size for o in verdict.worth_trying(layer)] == [4, 32]  # of two equally fast ones the closer


def test_most_gain_for_the_drop_comes_first():
    layers = [line((4, 5.0, 0.1, drop), name=name) for name, drop in (("a", 0.01), ("b", 0.0), ("c", 0.001))]
    assert [layer.name for layer, _ in verdict.ordered(verdict.accepted(layers, 0.01))] == ["b", "c", "a"]


def test_the_most_costly_layer_gets_closer_codes_first():
    small = line((4, 4.0, 0.1, 0.001), (8, 6.0, 0.05, None), name="small")
    large = line((4, 4.0, 0.1, 0.01), (8, 6.0, 0.05, None), (16, 9.9, 0.01, None), name="large")
    choices = verdict.accepted([small, large], 0.01)
    layer, option = verdict.closer(choices)
    assert (layer.name, option.size) == ("large", 8)
    layer, option = verdict.closer([choices[0], (layer, option)])  # sixteen would not gain
    assert (layer.name, option.size) == ("small", 8)
    assert verdict.closer([(layer, option)]) is None


@pytest.mark.parametrize("most", range(8))
def test_the_longest_prefix_that_holds_is_found(most):
    assert verdict.longest(7, lambda n: n <= most) == most


def test_amdahl():
    chosen = verdict.decided(line((4, 5.0, 0.1, 0.0)), line((4, 5.0, 0.1, 0.0)).of("codes")[0], 0.01)
    assert verdict.predicted([chosen, line()], 20.0) == pytest.approx(20 / 15)
    assert verdict.predicted([line()], 20.0) == 1
