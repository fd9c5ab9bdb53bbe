"""Tied embeddings: `attend` of a table becomes look-ups, or has its greatest outputs exact; calls look rows up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from jax_maddness import (
    FitConfig,
    Rule,
    capture,
    finetune,
    load_model,
    plan,
    prune_unused_outputs,
    replace,
    save_model,
)
from jax_maddness.nn.models.model import adapt

TOKENS, FEATURES = 150, 16
AXIS = FitConfig("axis")
TABLE = np.random.default_rng(0).standard_normal((TOKENS, FEATURES)).astype(np.float32)


class Net(nnx.Module):
    """Looks tokens up, computes, and multiplies with the same table."""

    def __init__(self, rngs, dtype=None, param_dtype=jnp.float32):
        self.embed = nnx.Embed(TOKENS, FEATURES, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.embed.embedding[...] = jnp.asarray(TABLE, param_dtype)
        self.body = nnx.Linear(FEATURES, FEATURES, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.same = self.embed

    def __call__(self, tokens):
        return self.same.attend(nnx.tanh(self.body(self.embed(tokens))))


class LinenNet(nn.Module):
    dtype: object = None
    param_dtype: object = jnp.float32

    def setup(self):
        self.embed = nn.Embed(TOKENS, FEATURES, dtype=self.dtype, param_dtype=self.param_dtype)
        self.body = nn.Dense(FEATURES, dtype=self.dtype, param_dtype=self.param_dtype)

    def __call__(self, tokens):
        return self.embed.attend(nn.tanh(self.body(self.embed(tokens))))

    def rows(self, tokens):
        return self.embed(tokens)


def model_of(kind, dtype=None, param_dtype=jnp.float32):
    if kind == "nnx":
        return Net(nnx.Rngs(0), dtype, param_dtype)
    module = LinenNet(dtype, param_dtype)
    variables = module.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    variables["params"]["embed"]["embedding"] = jnp.asarray(TABLE, param_dtype)
    return module, variables


def call(model, tokens):
    return model(tokens) if isinstance(model, nnx.Module) else model[0].apply(model[1], tokens)


def rows_of(model, tokens):
    if isinstance(model, nnx.Module):
        return model.embed(tokens)
    if isinstance(model[0], LinenNet):
        return model[0].apply(model[1], tokens, method="rows")
    return model[0].apply(model[1], tokens, method=lambda replaced, tokens: replaced(tokens, method="rows"))


@pytest.fixture(scope="module")
def batches():
    rng = np.random.default_rng(1)
    return [jnp.asarray(rng.integers(0, TOKENS, (4, 40)), jnp.int32) for _ in range(4)]


both = pytest.mark.parametrize("kind", ["nnx", "linen"])


@both
def test_the_greatest_outputs_are_those_of_the_exact_head(backend, kind, batches):
    model = model_of(kind)
    exact = call(model, batches[3])
    for top, candidates, least in ((3, 60, 0.9), (2, TOKENS, 1.0)):
        fast = replace(model, Rule("embed", top=top, num_candidates=candidates), batches[:3])
        y = jax.jit(lambda tokens, fast=fast: call(fast, tokens))(batches[3])
        assert (y.shape, y.dtype) == (exact.shape, exact.dtype)
        values, found = jax.lax.top_k(y, top)
        np.testing.assert_allclose(values, jnp.take_along_axis(exact, found, -1), rtol=1e-4, atol=1e-5)
        assert (found == jax.lax.top_k(exact, top)[1]).mean() >= least
        np.testing.assert_array_equal(rows_of(fast, batches[3]), rows_of(model, batches[3]))


@both
def test_the_table_is_held_once(kind, batches):
    model = model_of(kind)
    change = replace(model, Rule("embed", top=1), batches, dry_run=True)
    fast = adapt(replace(model, Rule("embed", top=1), batches[:2]))
    shapes = [array.shape for array in fast.arrays().values()]
    assert shapes.count((TOKENS, FEATURES)) == 1
    (line,) = (line for line in change.changes if line.path == "embed")
    assert (line.kind, line.shape, line.product) == ("Embed", (FEATURES, TOKENS), "top outputs")
    table = line.bytes_before
    assert table < line.bytes_after < 2 * table


@both
def test_the_exact_products_follow_the_table(kind, batches):
    """After training, say: what is exact is a product with the table as it is now."""
    fast = replace(model_of(kind), Rule("embed", top=1, num_candidates=TOKENS), batches[:2])
    if kind == "nnx":
        fast.embed.embedding[...] = 2 * fast.embed.embedding[...]
        body = model_of(kind)
        body.embed.embedding[...] = 2 * body.embed.embedding[...]
    else:
        double = jax.tree_util.tree_map_with_path(
            lambda path, a: 2 * a if "embedding" in jax.tree_util.keystr(path) else a, fast[1]
        )
        fast, (module, variables) = (fast[0], double), model_of(kind)
        body = module, {"params": {**variables["params"], "embed": double["params"]["embed"]}}
    np.testing.assert_allclose(call(fast, batches[3]), call(body, batches[3]), rtol=1e-4, atol=1e-4)


@both
@pytest.mark.parametrize("rule", [Rule("embed", top=2), Rule("embed", product="int8"), Rule(".*", 4, config=AXIS)])
def test_it_is_a_product_like_others_and_files_hold_it(tmp_path, kind, rule, batches):
    model = model_of(kind)
    fast = replace(model, rule, batches[:2])
    exact = call(model, batches[3])
    least = 0.5 if rule.product == "codes" else 0.9
    assert jnp.corrcoef(call(fast, batches[3]).reshape(-1), exact.reshape(-1))[0, 1] > least
    save_model(tmp_path / "fast", fast)
    loaded = load_model(tmp_path / "fast", model if kind == "nnx" else model[0])
    np.testing.assert_array_equal(call(loaded, batches[3]), call(fast, batches[3]))
    np.testing.assert_array_equal(rows_of(loaded, batches[3]), rows_of(model, batches[3]))


@both
def test_only_products_are_captured(kind, batches):
    """Its calls are given tokens, from which nothing is learned."""
    captured = capture(model_of(kind), batches[:2], Rule("embed"), max_rows=1000)
    assert captured.seen == {"embed": [2 * batches[0].size]}
    assert captured.rows["embed"][0].shape[1:] == (1, FEATURES)


@both
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_other_dtypes(kind, dtype, batches):
    model = model_of(kind, dtype, dtype)
    fast = replace(model, Rule("embed", top=1), batches[:3])
    exact, y = call(model, batches[3]), call(fast, batches[3])
    assert y.dtype == exact.dtype == dtype
    assert (y.argmax(-1) == exact.argmax(-1)).mean() > 0.9


@both
def test_gradients_reach_the_table(kind, batches):
    fast = replace(model_of(kind), Rule("embed", top=4, num_candidates=TOKENS), batches[:2])

    def gradient(model):
        adapted = adapt(model)
        arrays = adapted.arrays()
        (place,) = (place for place in arrays if place.endswith("embed/embedding"))
        return jax.grad(lambda a: adapted.outputs({**arrays, place: a}, batches[3]).sum())(arrays[place])

    np.testing.assert_allclose(gradient(fast), gradient(model_of(kind)), rtol=1e-3, atol=1e-3)


@both
def test_a_plan_leaves_it(kind, batches):
    model = model_of(kind)
    found = plan(model, batches[:2], [Rule(".*")], max_seconds=0.0, progress=False)
    (line,) = (line for line in found.layers if line.name == "embed")
    assert "Rule('embed', top=5)" in line.words
    fast = replace(model, Rule("embed", top=1), batches[:2])
    assert plan(fast, batches[:2], [Rule("body")], max_seconds=0.0, progress=False).layers


@pytest.mark.parametrize(
    ("kind", "rules"),
    [("nnx", [Rule("embed", 4, config=AXIS)]), ("linen", [Rule("embed", top=2), Rule("body", 4, config=AXIS)])],
)
def test_the_model_is_tuned(kind, rules, batches):
    model = model_of(kind)
    fast = replace(model, rules, batches[:3], keep_weights=True)
    tuned, report = finetune(fast, teacher=model, batches=batches[:3], steps=2, return_report=True)
    assert call(tuned, batches[3]).shape == (4, 40, TOKENS)
    assert list(report.layers) == [rule.pattern for rule in rules if rule.top is None]
    np.testing.assert_array_equal(rows_of(tuned, batches[3]), rows_of(model, batches[3]))
    with pytest.raises(ValueError, match="is used"):
        prune_unused_outputs(fast, batches[0])


def test_tables_that_are_only_looked_up_are_no_layers(batches):
    class Plain(nnx.Module):
        def __init__(self, rngs):
            self.embed, self.head = nnx.Embed(TOKENS, FEATURES, rngs=rngs), nnx.Linear(FEATURES, 3, rngs=rngs)

        def __call__(self, tokens):
            return self.head(self.embed(tokens))

    class LinenPlain(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            return nn.Dense(3, name="head")(nn.Embed(TOKENS, FEATURES, name="embed")(tokens))

    module = LinenPlain()
    for model in (Plain(nnx.Rngs(0)), (module, module.init(jax.random.key(0), batches[0]))):
        change = replace(model, Rule(".*"), batches, dry_run=True)
        assert [line.path for line in change.changes] == ["head"]


def test_embeddings_of_other_classes_stay(batches):
    class Scaled(nnx.Embed):
        def attend(self, query):
            return 2 * super().attend(query)

    model = Net(nnx.Rngs(0))
    model.embed = model.same = Scaled(TOKENS, FEATURES, rngs=nnx.Rngs(0))
    change = replace(model, Rule(".*"), batches, dry_run=True)
    (line,) = (line for line in change.changes if line.path == "embed")
    assert line.product is None
    assert "Scaled (not flax's own)" in line.reason
