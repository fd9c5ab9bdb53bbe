"""plan(..., held_out=): drops are measured on batches of the user's, and layers are learned from all others."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jax_maddness import FitConfig, Plan, Rule, plan
from jax_maddness.nn.planning import measure
from jax_maddness.nn.planning.report import _READABLE

RULE = Rule(".*", num_codebooks=2, config=FitConfig("paper"))
X = np.random.default_rng(0).standard_normal((80, 8)).astype(np.float32)
BATCHES = [X[:20], X[20:40]]


@pytest.fixture
def layer():
    return nnx.Linear(8, 4, rngs=nnx.Rngs(0))


@pytest.fixture
def steady(monkeypatch):
    """Times of a machine on which every product is faster than the layer, and every model than the one before."""
    monkeypatch.setattr(measure, "times", lambda units, others: [(5.0, 0.0)] * len(units) + [(1.0, 0.0)] * len(others))
    monkeypatch.setattr(
        measure, "interleaved", lambda calls, seconds=0: [(5.0 / (i + 1), 0.0) for i in range(len(calls))]
    )


def test_the_metric_sees_these_batches_and_no_others(layer, steady, tmp_path):
    seen = []

    def metric(y, batch):
        seen.append(batch.shape)
        return -float(jnp.abs(y).mean())

    found = plan(layer, BATCHES, RULE, held_out=[X[:50], X[:60]], metric=metric, max_drop=9, products=["int8"])
    assert set(seen) == {(50, 8), (60, 8)}
    assert found.replaced
    assert found.held_out == 2
    assert "Drops measured on 2 held-out batches, `held_out`." in str(found)
    found.html(tmp_path / "plan.html")
    assert "Drops measured on 2 held-out batches, <code>held_out</code>." in (tmp_path / "plan.html").read_text()


def test_without_it_the_last_of_the_batches_are_held_out(layer, steady):
    seen = []

    def metric(y, batch):
        seen.append(float(batch[0, 0]))
        return 0.0

    found = plan(layer, BATCHES, RULE, metric=metric, products=["int8"])
    assert set(seen) == {float(X[20, 0])}
    assert "Drops measured on 1 held-out batch, the last of `batches`." in str(found)


def test_one_batch_is_enough_to_learn_from(layer, steady, recwarn):
    found = plan(layer, [X[:20]], RULE, held_out=(X[:20],), products=["int8"], max_drop=9)
    assert found.held_out == 1
    assert not [one for one in recwarn if "one batch only" in str(one.message)]
    with pytest.warns(UserWarning, match="one batch only"):
        assert plan(layer, [X[:20]], RULE, products=["int8"], max_drop=9).held_out == 0


@pytest.mark.parametrize(
    ("held_out", "error", "words"),
    [
        (X, TypeError, "`held_out` is an array; pass a list"),
        (3, TypeError, "`held_out` is 3; pass a list"),
        ([], ValueError, r"`held_out` is empty\. Pass inputs of the model\."),
        (lambda: iter([]), ValueError, "`held_out` is empty, or the function"),
        (
            [X[:9], (X, X)],
            ValueError,
            r"number 1, of \(float32\[80, 8\], float32\[80, 8\]\); `batches` has float32\[20",
        ),
        ([X.astype(np.int32)], ValueError, r"of int32\[80, 8\]; `batches` has float32\[20, 8\]"),
        ([X[:9], X[0]], ValueError, r"number 1, of float32\[8\]; .*as many dimensions"),
        ([X[:, :7]], ValueError, r"`held_out` has a batch, number 0, that the model does not take, float32\[80, 7\]"),
    ],
)
def test_batches_that_cannot_be_right_are_refused_before_anything_is_measured(layer, held_out, error, words, tmp_path):
    with pytest.raises(error, match=words):
        plan(layer, BATCHES, RULE, held_out=held_out, path=tmp_path / "plan.json", metric=lambda y, batch: 1 / 0)
    assert not (tmp_path / "plan.json").exists()


def test_a_plan_goes_on_with_the_same_held_out_batches_alone(layer, steady, tmp_path):
    path = tmp_path / "plan.json"
    arguments = {"max_drop": 9, "products": ["int8"], "path": path}
    found = plan(layer, BATCHES, RULE, held_out=[X[40:]], **arguments)
    assert plan(layer, BATCHES, RULE, held_out=lambda: iter([X[40:]]), **arguments) == found
    for other in ([X[41:]], None):
        with pytest.raises(ValueError, match="measured with other `held_out`"):
            plan(layer, BATCHES, RULE, held_out=other, **arguments)
    assert Plan.from_json(path) == found


def test_a_file_of_version_5_says_nothing_of_held_out_batches(layer, steady, tmp_path):
    path = tmp_path / "plan.json"
    arguments = {"max_drop": 9, "products": ["int8"], "path": path}
    found = plan(layer, BATCHES, RULE, **arguments)
    fields = json.loads(path.read_text()) | {"version": 5}
    del fields["held_out"], fields["measured_ms"]
    for line in fields["layers"]:
        del line["one_hot"]
    path.write_text(json.dumps(fields))
    assert 5 in _READABLE
    again = plan(layer, BATCHES, RULE, **arguments)
    assert again.held_out == 0
    assert again.layers == found.layers
    assert "Drops measured on" not in str(again)
