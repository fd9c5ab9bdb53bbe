"""The report of a plan: three lines, advice, a folded table, one page."""

import dataclasses
import json
import math
import re

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.simulated import random_model

from jax_maddness import FitConfig, Plan, Rule, plan
from jax_maddness.nn.planning import advice, summary
from jax_maddness.nn.planning.verdict import LayerPlan, Option


def plan_of(*lines, exact_ms=10.0, **fields):
    return Plan(tuple(lines), 0.01, "metric", "machine", exact_ms, exact_ms, **fields)


def layer(name="a", ms=5.0, shape=(64, 64), rows=100, **fields):
    return LayerPlan(name, (name,), "Linear", shape, rows, (Option("exact", 0, ms, 0.0, 0.0),), **fields)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (plan_of(layer(ms=0.5)), "profile the rest"),
        (
            plan_of(layer(), layer("head", 4.0, (384, 51865))),
            "'head' computes 51,865 outputs, 40% of the time.*`top_k`",
        ),
        (plan_of(layer(rows=1)), "at most 8 rows a call"),
        (plan_of(layer(one_hot=True)), "1 layers, 50% of the time, have one-hot inputs.*`nnx.Embed`"),
        (plan_of(layer(ms=9.0), layer("small", 0.5, one_hot=True)), None),
        (plan_of(layer(groups=32, shape=(9, 1))), "convolutions with groups have 50% of the time"),
        (plan_of(layer()), None),
        (plan_of(layer(), layer("small", 0.5, (384, 51865))), None),
    ],
)
def test_advice_where_something_else_would_help(found, words):
    said = advice.advice(found)
    assert (not said) if words is None else re.search(words, said[0])
    if words is not None:
        assert re.search(words, summary.headline(found)[2])


@pytest.mark.parametrize(
    ("rows", "hot"),
    [
        (np.eye(5)[[0, 3, 3]], True),
        (np.eye(5)[[0, 3, 3]] * 2, False),
        (np.eye(5)[[0, 3, 3]] + np.eye(5)[[1, 1, 3]], False),
        (-np.eye(5)[[0, 3, 3]], False),
        (np.zeros((3, 5)), False),
        (np.ones((3, 1)), False),
        (np.zeros((0, 5)), False),
    ],
)
def test_one_hot_rows_are_told_from_others(rows, hot):
    assert advice.is_one_hot(rows[:, None].astype(np.float32)) == hot


def test_three_lines_say_what_matters():
    plan = random_model(0).plan(0.01, math.inf)
    get, limit, step, *_ = str(plan).splitlines()
    assert re.match(r"What you get: \d+\.\d\dx at a drop of .* replaced", get)
    assert limit.startswith("What limits it: ")
    assert "`replace(model, plan)`" in step
    late = random_model(0).plan(0.01, 0.5)
    assert "nothing is replaced" in str(late)
    assert "more `max_seconds`" in summary.headline(late)[2]
    some = random_model(0).plan(0.01, 4.0)
    assert summary.headline(some)[1] == "What limits it: the time: not all products of 4 layers were measured."


def test_shares_and_the_rest_add_up():
    """Alone, the layers take 12 ms; in the model, 6 of 8."""
    found = plan_of(layer("a", 9.0), layer("b", 3.0), exact_ms=8.0, rest_ms=2.0)
    assert [found.share(line) for line in found.layers] == [6 * 0.75 / 8, 6 * 0.25 / 8]
    assert (found.scale, found.rest, found.best_case) == (0.5, 0.25, 4.0)
    assert "Alone, the layers take 12 ms, in the model 6 ms: their shares are scaled to that." in summary.totals(found)
    alone = plan_of(layer("a", 3.0), exact_ms=4.0)
    assert (alone.scale, alone.rest) == (1.0, 0.25)
    assert "Alone" not in str(alone)
    nothing = plan_of(layer("a", 3.0), exact_ms=4.0, rest_ms=4.0)
    assert (nothing.rest, nothing.best_case) == (1.0, 1.0)


def test_the_table_is_sorted_by_share_and_folded():
    chosen = dataclasses.replace(layer("big", 6.0), words="stays: C = 4 would be slower, 0.8x")
    chosen = dataclasses.replace(chosen, options=(*chosen.options, Option("codes", 4, 7.0, 0.0, 0.1)))
    others = [LayerPlan(f"n{i}", (f"n{i}",), "Linear", (4, 4), 1, words="stays: no rule matches") for i in range(9)]
    small = dataclasses.replace(layer("small", 0.01), words="stays: 0.1% of the model's time")
    rows = summary.table(plan_of(small, *others, dataclasses.replace(chosen, name="next"), chosen))[2:]
    assert [row.split(" | ")[0] for row in rows] == [
        "| next",
        "| big",
        "| small",
        "| n0, n1, n2 and 6 more",
    ]
    assert "60.0%" in rows[0]


@pytest.mark.parametrize("seed", range(4))
def test_a_page_needs_nothing_else(seed, tmp_path):
    plan = random_model(seed).plan(0.01, math.inf)
    plan.html(tmp_path / "plan.html")
    page = (tmp_path / "plan.html").read_text()
    assert page.count("<svg") == 1 + len(plan.layers)
    assert page.count("<circle") >= sum(len(line.options) for line in plan.layers) + len(plan.trials)
    assert 'name="viewport"' in page
    assert not any(outside in page for outside in ("http", "src=", "href=", "url("))
    numbers = re.findall(r' (?:x|y|cx|cy)="([^"]*)"|width:([0-9a-z.+-]*)%', page)
    assert all(0 <= float(number or width) < 1000 for number, width in numbers)


def test_a_file_of_version_4_is_read(tmp_path):
    written = random_model(0).plan(0.01, math.inf)
    written.how = {line.name: {"config": dataclasses.asdict(FitConfig("paper"))} for line in written.layers}
    written.to_json(tmp_path / "plan.json")
    fields = json.loads((tmp_path / "plan.json").read_text()) | {"version": 4}
    for name in ("only_look", "date", "versions", "batch"):
        del fields[name]
    for line in fields["layers"]:
        del line["failed"], line["groups"]
    for trial in fields["trials"]:
        del trial["measured"]
    (tmp_path / "old.json").write_text(json.dumps(fields))
    read = Plan.from_json(tmp_path / "old.json")
    assert read.layers == written.layers
    assert read.rules() == written.rules()
    assert not any(trial.measured for trial in read.trials)
    assert str(read).splitlines()[0] == str(written).splitlines()[0]


def test_a_page_of_a_plan_without_any_measurement(tmp_path):
    plan_of(LayerPlan("a", ("a",), "Linear", (4, 4), 1), exact_ms=0.0).html(tmp_path / "plan.html")
    assert "The model was not timed" in (tmp_path / "plan.html").read_text()


def test_a_plan_finds_one_hot_inputs():
    model = nnx.Sequential(nnx.Linear(8, 8, rngs=nnx.Rngs(0)), nnx.Linear(8, 8, rngs=nnx.Rngs(1)))
    batches = [jnp.eye(8)[np.arange(20) % 8], jnp.eye(8)]
    found = plan(model, batches, Rule(".*", config=FitConfig("paper")), max_seconds=0)
    assert [line.one_hot for line in found.layers] == [True, False]
