"""Output layers whose greatest outputs are exact: `Rule(top=...)` in nnx and linen."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from jax_maddness import (
    Rule,
    build_index,
    finetune,
    load_model,
    plan,
    prune_unused_outputs,
    replace,
    save_model,
    top_k,
)
from jax_maddness.retrieval.top_outputs import with_exact_top

TOKENS, FEATURES = 150, 16


class Net(nnx.Module):
    """A layer and a wide head."""

    def __init__(self, rngs, use_bias=True):
        self.body = nnx.Linear(FEATURES, FEATURES, rngs=rngs)
        self.head = nnx.Linear(FEATURES, TOKENS, use_bias=use_bias, rngs=rngs)
        if use_bias:
            self.head.bias[...] = jax.random.normal(rngs.params(), (TOKENS,))

    def __call__(self, x):
        return self.head(nnx.tanh(self.body(x)))


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(TOKENS, name="head")(nn.tanh(nn.Dense(FEATURES, name="body")(x)))


@pytest.fixture(scope="module")
def batches():
    rng = np.random.default_rng(0)
    factors = rng.standard_normal((5, FEATURES))
    return [jnp.asarray(rng.standard_normal((8, 20, 5)) @ factors, jnp.float32) for _ in range(4)]


def model_of(kind, x):
    if kind == "nnx":
        return Net(nnx.Rngs(0)), lambda model, x: model(x)
    module = LinenNet()
    return (module, module.init(jax.random.key(0), x)), lambda model, x: model[0].apply(model[1], x)


def check(y, exact, top, least):
    """The greatest outputs of `y` are exact, in order, and mostly those of `exact`; nothing else is above them."""
    values, found = jax.lax.top_k(y, top)
    np.testing.assert_allclose(values, jnp.take_along_axis(exact, found, -1), rtol=1e-4, atol=1e-5)
    wanted = jax.lax.top_k(exact, top)[1]
    assert (found == wanted).mean() >= least
    assert y.shape == exact.shape
    assert y.dtype == exact.dtype


@pytest.mark.parametrize("kind", ["nnx", "linen"])
def test_the_greatest_outputs_are_exact(backend, kind, batches):
    model, call = model_of(kind, batches[0])
    for top, candidates, least in ((1, 20, 0.97), (3, 40, 0.97), (2, TOKENS, 1.0)):
        fast = replace(model, Rule("head", top=top, num_candidates=candidates), batches[:3])
        y = jax.jit(lambda x, fast=fast: call(fast, x))(batches[3])
        exact = call(model, batches[3])
        check(y, exact, top, least)
        if candidates == TOKENS:
            np.testing.assert_allclose(y, exact, rtol=1e-4, atol=1e-5)
        else:  # all others are near, too
            assert jnp.corrcoef(y.reshape(-1), exact.reshape(-1))[0, 1] > 0.9


@pytest.mark.parametrize("kind", ["nnx", "linen"])
def test_files_hold_the_layer(tmp_path, kind, batches):
    model, call = model_of(kind, batches[0])
    fast = replace(model, Rule("head", top=2), batches[:2])
    save_model(tmp_path / "fast", fast)
    loaded = load_model(tmp_path / "fast", model if kind == "nnx" else model[0])
    np.testing.assert_array_equal(call(loaded, batches[3]), call(fast, batches[3]))


def test_heads_of_other_kinds(batches):
    x = batches[3]
    for head in (
        nnx.LinearGeneral(FEATURES, (10, 15), rngs=nnx.Rngs(0)),
        nnx.Einsum("...d,dm->...m", (FEATURES, TOKENS), rngs=nnx.Rngs(0)),
        nnx.Linear(FEATURES, 3, rngs=nnx.Rngs(0)),
    ):
        fast = replace(head, Rule(".*", top=1), batches[:3])
        exact, y = head(x), fast(x)
        assert y.shape == exact.shape
        flat, wanted = (a.reshape(8, 20, -1) for a in (y, exact))
        check(flat, wanted, 1, 0.97)
    module = nn.Einsum((TOKENS, FEATURES), "btd,md->btm")
    model = module, module.init(jax.random.key(0), x)
    fast, variables = replace(model, Rule(".*", top=1), batches[:3])
    check(fast.apply(variables, x), module.apply(model[1], x), 1, 0.97)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_other_dtypes(dtype, batches):
    head = nnx.Linear(FEATURES, TOKENS, dtype=dtype, param_dtype=dtype, rngs=nnx.Rngs(0))
    fast = replace(head, Rule(".*", top=1), batches[:3])
    exact, y = head(batches[3]), fast(batches[3])
    assert y.dtype == exact.dtype == dtype
    assert (y.argmax(-1) == exact.argmax(-1)).mean() > 0.9


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_nothing_ties_with_the_greatest_output_once_it_is_rounded(dtype, rng):
    """Outputs that are nearly equal, or not above zero, of which one is a candidate."""
    w = np.float32(1 + 1e-4 * rng.standard_normal((300, 8)))
    x = rng.random((40, 8))
    x[::4], x[1::4] = -x[::4], 0
    for vectors in (w, -np.abs(np.float32(rng.standard_normal((300, 8))))):
        index = build_index(vectors, 2, queries=np.float32(x))
        rows = jnp.asarray(x, dtype)
        found = top_k(rows, index, k=1, num_candidates=1)[1][:, 0]
        y = with_exact_top(rows, index, 1, 1)
        assert y.dtype == dtype
        np.testing.assert_array_equal(y.argmax(1), found)


def test_rows_that_are_not_finite(batches):
    model = Net(nnx.Rngs(0))
    fast = replace(model, Rule("head", top=1), batches[:2])
    y = fast(batches[3].at[0, 0, 0].set(jnp.nan))
    assert jnp.isnan(y[0, 0]).all()
    assert jnp.isfinite(y[1:]).all()


def test_under_transformations(batches):
    model = Net(nnx.Rngs(0), use_bias=False)
    fast = replace(model, Rule("head", top=4, num_candidates=TOKENS), batches[:2])
    x = batches[3]
    np.testing.assert_allclose(jax.vmap(fast)(x), fast(x), rtol=1e-4, atol=1e-5)
    gradient, exact = (jax.grad(lambda x, m=m: jax.nn.logsumexp(m(x), -1).sum())(x) for m in (fast, model))
    np.testing.assert_allclose(gradient, exact, rtol=1e-3, atol=1e-4)


def test_the_rest_of_the_model_is_replaced_and_tuned(batches):
    model = Net(nnx.Rngs(0))
    fast = replace(model, [Rule("head", top=2), Rule("body", 4)], batches[:3], keep_weights=True)
    tuned = finetune(fast, teacher=model, batches=batches[:3], steps=3)
    assert tuned(batches[3]).shape == (8, 20, TOKENS)
    with pytest.raises(ValueError, match="it is a product, in top outputs"):
        prune_unused_outputs(fast, batches[0])


def test_it_tells_what_changes(batches):
    change = replace(Net(nnx.Rngs(0)), Rule("head", top=2), batches, dry_run=True)
    assert "top outputs" in str(change)
    with pytest.raises(ValueError, match="has `top`, but a plan"):
        plan(Net(nnx.Rngs(0)), batches, [Rule("head", top=2), Rule(".*")])


def test_defaults():
    rule = Rule("head", top=20)
    assert (rule.product, rule.num_candidates, rule.codebooks(384)) == ("top outputs", 40, 96)
    assert Rule("head", product="top outputs").top == 1
    assert Rule("head", top=1).num_candidates == 32
    assert dataclasses.replace(rule, num_codebooks=5).codebooks(384) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top": 0}, "`top`"),
        ({"top": 2.5}, "`top`"),
        ({"top": 5, "num_candidates": 4}, "`num_candidates` is 4, less than `top`"),
        ({"top": 5, "product": "int8"}, "`top` is 5, but `product`"),
        ({"top": 5, "exact_rows": 0.1}, "`exact_rows`"),
        ({"top": 5, "num_codebooks": 0}, "`num_codebooks`"),
    ],
)
def test_rules_that_make_no_sense(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        Rule("head", **options)
