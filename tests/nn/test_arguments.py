"""Arguments of `plan`, `finetune` and `Rule` that cannot be right: the message names them, and nothing is done."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.ops import random_op

from jax_maddness import FitConfig, Plan, Rule, capture, finetune, plan, replace
from jax_maddness.nn import calibrate
from jax_maddness.nn.batches import peek
from jax_maddness.nn.planning import measure
from jax_maddness.nn.tuning import losses

RULE = Rule("", num_codebooks=2, config=FitConfig("paper"))
X = np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32)
BATCHES = [X[:20], X[20:]]


@pytest.fixture
def layer():
    return nnx.Linear(8, 4, rngs=nnx.Rngs(0))


@pytest.fixture
def learned(monkeypatch, rng):
    """Random ops in place of learned ones."""
    monkeypatch.setattr(
        calibrate, "_learn_op", lambda x, w, bias, size, *_: random_op(rng, *w.shape[:1], size, len(bias))
    )


@pytest.mark.parametrize("batches", [X, jnp.asarray(X), lambda: X])
def test_an_array_is_no_list_of_batches(layer, batches):
    words = r"`batches` is an array; pass a list of batches, for example \[x\]"
    for verb in (plan, capture):
        with pytest.raises(TypeError, match=words):
            verb(layer, batches, RULE)
    with pytest.raises(TypeError, match=words):
        replace(layer, RULE, batches)
    with pytest.raises(TypeError, match=words):
        finetune(layer, teacher=layer, batches=batches)


@pytest.mark.parametrize("batches", [{"x": X}, "x.npy", 5, None, X[0, 0]])
def test_what_is_no_list_is_named(batches):
    with pytest.raises(TypeError, match=r"`held_out` is .*; pass a list of batches"):
        peek(batches, "held_out")
    with pytest.raises(ValueError, match="was read before"):
        peek(lambda: iter([]))


@pytest.mark.parametrize(
    ("argument", "value", "words"),
    [
        ("metric", "accuracy", "expected a function"),
        ("call", 3, "expected a function"),
        ("max_drop", "1%", "expected a number >= 0"),
        ("max_drop", math.nan, "expected a number >= 0"),
        ("max_drop", True, "expected a number >= 0"),
        ("max_seconds", "60", "expected a number of seconds"),
        ("max_seconds", -1, "expected a number of seconds"),
        ("max_seconds", math.nan, "expected a number of seconds"),
        ("ratios", [], "empty"),
        ("ratios", [0], "expected an integer >= 1"),
        ("ratios", "16", "expected an integer >= 1"),
        ("ratios", [2.5], "expected an integer >= 1"),
        ("products", ("int4",), "expected some of"),
        ("products", 8, "expected some of"),
        ("products", (), "expected some of"),
        ("path", 7, "expected the name of a JSON file"),
        ("max_rows", 0, "expected an integer >= 2"),
        ("max_rows", 1e4, "expected an integer >= 2"),
        ("max_bytes", 1, "2 rows of '' take 64"),
        ("rules", "encoder", r"expected a `Rule`"),
        ("rules", None, r"expected a `Rule`"),
    ],
)
def test_arguments_of_plan(layer, argument, value, words):
    with pytest.raises((TypeError, ValueError), match=f"`{argument}` is .*{words}"):
        plan(layer, BATCHES, **{"rules": RULE, argument: value})


def test_a_file_that_cannot_be_written_is_found_at_once(layer, tmp_path):
    for path in (tmp_path, tmp_path / "no folder" / "plan.json"):
        with pytest.raises(ValueError, match="in a folder that exists"):
            plan(layer, BATCHES, RULE, path=path)


def test_integers_of_numpy_are_integers(layer, tmp_path):
    rule = Rule("", num_codebooks=np.int64(2), rank=np.int32(3), num_candidates=np.uint8(1), exact_rows=np.float32(0.5))
    assert [type(getattr(rule, name)) for name in ("num_codebooks", "rank", "num_candidates", "exact_rows")] == [
        int,
        int,
        int,
        float,
    ]
    rules = Rule("", config=FitConfig("paper"))
    found = plan(layer, BATCHES, rules, ratios=np.array([8, 4]), max_seconds=np.int64(0), path=tmp_path / "plan.json")
    assert Plan.from_json(tmp_path / "plan.json") == found
    assert found.how[""]["num_codebooks"] == [1, 2]


def test_a_random_metric_is_found(layer):
    scores = iter(range(100))
    with pytest.warns(UserWarning, match=r"`metric` is not deterministic: .* differ by 1\."):
        plan(layer, BATCHES, RULE, metric=lambda y, batch: next(scores), max_seconds=0)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *((name, value) for name in ("num_codebooks", "rank", "num_candidates") for value in (True, 2.5, "4", -1)),
        *((name, value) for name in ("skip", "share") for value in ("no", 0, None)),
        *(("exact_rows", value) for value in ("0.1", None, True, math.nan, 1, -0.1)),
        ("pattern", 3),
        ("pattern", "*"),
        ("conv", None),
        ("config", "paper"),
        ("product", 8),
    ],
)
def test_attributes_of_rules(argument, value):
    with pytest.raises((TypeError, ValueError), match=f"`{argument}` (is|'.*' is)"):
        Rule(**{"pattern": "", argument: value})


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *((name, value) for name in ("steps", "look_every", "patience") for value in (0, 1.5, True, "5")),
        *(("held_out", value) for value in (0, -1, True, 1.5, X, "x")),
        *(("learning_rate", value) for value in ("0.1", 0, math.nan, math.inf, None)),
        *(("loss", value) for value in (5, [5], "l2", None)),
        ("seed", -1),
        ("call", "x"),
    ],
)
def test_arguments_of_finetune(layer, learned, argument, value):
    fast = replace(layer, RULE, BATCHES)
    with pytest.raises((TypeError, ValueError), match=f"`{argument}` is "):
        finetune(fast, **{"teacher": layer, "batches": BATCHES, argument: value})


def test_losses_name_their_numbers():
    for value in (0, -1, "1", math.nan, math.inf, True):
        with pytest.raises((TypeError, ValueError), match="`temperature` is"):
            losses.kl(value)
        with pytest.raises((TypeError, ValueError), match="`weight` is"):
            losses.Term("nmse", value)


def test_nan_in_batches_names_the_layer_and_the_batches(learned):
    x = X.copy()
    x[3, 4] = np.nan
    model = nnx.Sequential(
        jnp.nan_to_num, nnx.Linear(8, 4, rngs=nnx.Rngs(0)), jnp.log, nnx.Linear(4, 4, rngs=nnx.Rngs(1))
    )
    config = FitConfig("paper")
    with pytest.raises(ValueError, match=r"layer 'layers/3' \d+ rows .* entries themselves: 1\."):
        plan(model, [X, x, X], Rule(".*", config=config))
    with pytest.raises(ValueError, match=r"layer 'layers/3' \d+ rows .* the layers before make them"):
        plan(model, [X, X, X], Rule("layers/3", config=config))
    found = plan(model, [x, x], Rule("layers/1", config=config), metric=lambda y, batch: 0, max_seconds=0)
    assert found.before == 0  # the model takes NaN, and the layer never sees it


def test_a_metric_that_raises_or_is_interrupted_keeps_what_was_measured(layer, learned, tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "times", lambda units, others: [(2.0, 0.0)] * len(units) + [(1.0, 0.0)] * len(others))
    monkeypatch.setattr(measure, "interleaved", lambda calls, seconds=0: [(2.0, 0.0), (1.0, 0.0)][: len(calls)])
    calls, path = [], tmp_path / "plan.json"
    errors = [KeyboardInterrupt, RuntimeError("out of labels")]

    def metric(y, batch):
        calls.append(0)
        if len(calls) == 3:  # the exact model is scored twice
            raise errors.pop()
        return 0.0

    with pytest.raises(RuntimeError, match="out of labels") as caught:
        plan(layer, BATCHES, RULE, metric=metric, path=path, products=["codes"])
    assert "is kept in" in caught.value.__notes__[0]
    kept = Plan.from_json(path)
    assert kept.layers[0].options
    calls.clear()
    with pytest.warns(UserWarning, match="interrupted: this is the best answer so far"):
        found = plan(layer, BATCHES, RULE, metric=metric, path=path, products=["codes"])
    assert found == Plan.from_json(path)
    assert not found.finished
    assert plan(layer, BATCHES, RULE, metric=metric, path=path, products=["codes"]).replaced
