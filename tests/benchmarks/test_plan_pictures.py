"""The page of a plan in a browser: it fits a phone, raises no error, and pictures of it are small."""

import dataclasses
import math

import pytest
from helpers.simulated import random_model

from jax_maddness import FitConfig

pytest.importorskip("PIL")
from benchmarks import plan_pictures

pytestmark = pytest.mark.skipif(plan_pictures.browser() is None, reason="no browser is installed")


@pytest.fixture(scope="module")
def plan():
    """One with all parts of a page, and with names and verdicts longer than a phone is wide."""
    found = random_model(0, layers=9).plan(0.01, math.inf)
    found.how = {line.name: {"config": dataclasses.asdict(FitConfig("paper"))} for line in found.layers}
    named = {line.name: f"encoder/blocks/{i}/feed_forward_{'x' * 60}/dense" for i, line in enumerate(found.layers)}
    found.how = {named[name]: how for name, how in found.how.items()}
    words = (
        "stays: C = 4 3.1x, but alone a drop of 0.05, more than 0.01; whole int8 product: not enough memory to learn it"
    )
    found.layers = tuple(
        dataclasses.replace(line, name=named[line.name], words=words if line.choice is None else line.words)
        for line in found.layers
    )
    return found


@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("unfold", [False, True])
def test_a_page_fits_its_window(plan, tmp_path, width, unfold):
    plan.html(tmp_path / "plan.html")
    found = plan_pictures.rendered(tmp_path / "plan.html", width, unfold)
    assert found.width == width
    assert not found.errors


def test_what_does_not_fit_is_noticed(tmp_path):
    page = tmp_path / "page.html"
    page.write_text('<!doctype html><div style="width:900px">wide</div><script>nothing()</script>')
    found = plan_pictures.rendered(page, 400)
    assert found.width >= 900
    assert "nothing is not defined" in found.errors[0]


def test_pictures_are_small(plan, tmp_path, capsys):
    plan.to_json(tmp_path / "plan.json")
    plan_pictures.main([str(tmp_path / "plan.json"), "--output", str(tmp_path)])
    for name, (width, most) in plan_pictures.PICTURES.items():
        with plan_pictures.Image.open(tmp_path / name) as image:
            assert image.width == width
            assert image.height <= most
        assert (tmp_path / name).stat().st_size < 150_000
    assert capsys.readouterr().out.count(" kB") == 2
