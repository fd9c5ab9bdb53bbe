"""The public names: all of them are in `dir()` and `help()`, documented, and have annotations that can be evaluated."""

import inspect
import pydoc
import typing

import pytest

import jax_maddness
from jax_maddness import nn, testing

FUNCTIONS = [name for name in dir(jax_maddness) if inspect.isfunction(getattr(jax_maddness, name))]


def test_dir_shows_every_public_name():
    assert set(jax_maddness.__all__) <= set(dir(jax_maddness))
    assert {"nn", "testing", "plan", "replace", "finetune", "Rule", "fit", "amm"} <= set(dir(jax_maddness))
    assert len(jax_maddness.__all__) == len(set(jax_maddness.__all__))
    for name in dir(jax_maddness):
        assert getattr(jax_maddness, name) is not None


def test_every_name_of_nn_that_users_need_at_hand_is_at_the_top():
    reports_and_terms = {"Change", "Diff", "FinetuneReport", "PruneReport", "Term"}
    assert set(nn.__all__) - set(jax_maddness.__all__) == reports_and_terms
    assert jax_maddness.nn is nn
    assert jax_maddness.testing is testing


def test_help_shows_what_is_loaded_on_demand():
    text = pydoc.plain(pydoc.render_doc(jax_maddness))
    for name in jax_maddness.__all__:
        assert name in text


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        _ = jax_maddness.fitt


@pytest.mark.parametrize("name", FUNCTIONS)
def test_annotations_of_functions_can_be_evaluated(name):
    function = getattr(jax_maddness, name)
    hints = typing.get_type_hints(function)
    assert set(hints) == {*inspect.signature(function).parameters, "return"}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_argument_is_documented(name):
    """Every argument is named in the docstring, as an entry of `Args:` or in backquotes."""
    function = getattr(jax_maddness, name)
    text = inspect.getdoc(function)
    for argument in inspect.signature(function).parameters:
        assert f"`{argument}`" in text or f"{argument}:" in text or f"{argument}," in text, argument


@pytest.mark.parametrize("name", [n for n in dir(jax_maddness) if inspect.isclass(getattr(jax_maddness, n))])
def test_classes_are_documented(name):
    assert inspect.getdoc(getattr(jax_maddness, name))
