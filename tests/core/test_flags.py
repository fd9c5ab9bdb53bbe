"""All of core and learn under JAX's stricter settings, with the results that they have without them."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.ops import random_oblique_trees, random_op

from jax_maddness import (
    FitConfig,
    aggregate,
    amm,
    encode,
    evaluate,
    fit,
    fit_budget,
    fold_feature_order,
    load,
    save,
    with_small_batch_tables,
)
from jax_maddness.core.amm import amm_of_codes
from jax_maddness.core.greatest import greatest
from jax_maddness.learn.refit import refit_tables

FLAGS = {
    "none": contextlib.nullcontext,
    "rank promotion": lambda: jax.numpy_rank_promotion("raise"),
    "x64": lambda: jax.enable_x64(True),
    "NaN": lambda: jax.debug_nans(True),
    "dtype promotion": lambda: jax.numpy_dtype_promotion("strict"),
}
FLAGGED = [name for name in FLAGS if name != "none"]


def of_ops(op, x, tmp_path):
    codes = encode(x, op.trees)
    yield codes
    yield aggregate(codes, op.tables)
    yield amm(x, op)
    yield jax.jit(amm)(x, op)
    yield amm(np.asarray(x, np.float64), op)
    yield amm(x[:2], with_small_batch_tables(op))
    yield amm(x.astype(jnp.bfloat16), op).astype(jnp.float32)
    yield jax.vmap(amm, (0, None))(x.reshape(3, 4, 8), op)
    yield amm_of_codes(codes, op.tables)
    yield jax.grad(lambda x: amm(x, op).sum())(x)
    yield jax.grad(lambda op: amm(x, op).sum(), allow_int=True)(op).tables.scale
    yield jax.jvp(lambda x: amm(x, op), (x,), (x,))[1]
    save(tmp_path / "op", op)
    yield amm(x, load(tmp_path / "op"))


def compare(function, flag):
    with FLAGS["none"]():
        expected = [np.asarray(a) for a in function()]
    with FLAGS[flag]():
        found = [np.asarray(a) for a in function()]
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("flag", FLAGGED)
def test_ops_under_every_flag(any_op, x, flag, tmp_path):
    compare(lambda: of_ops(any_op, x, tmp_path), flag)


@pytest.mark.parametrize("flag", FLAGGED)
def test_what_else_is_in_core_under_every_flag(rng, x, flag):
    op = random_op(rng, 8, 3, 5, make_trees=random_oblique_trees)
    codes = encode(x, op.trees).reshape(3, 4, 3)
    skipped = jnp.zeros((3, 4), jnp.uint8)
    compare(lambda: greatest(codes, op.tables.values, skipped, 2), flag)
    before = np.ones((4, 8), np.float32), np.zeros(8, np.float32)
    compare(lambda: jax.tree.leaves(fold_feature_order(op, *before)), flag)


@pytest.mark.parametrize("flag", FLAGGED)
@pytest.mark.parametrize("method", ["paper", "axis", "oblique"])
def test_learning_under_every_flag(flag, method):
    rng = np.random.default_rng(0)
    x, w, b = rng.standard_normal((600, 8)), rng.standard_normal((8, 3)), np.ones(3)
    config = FitConfig(method, steps=50)

    def learned():
        op = fit(x, w, b, num_codebooks=2, config=config)
        yield op.tables.values
        yield op.tables.offset
        yield np.float32(evaluate(op, x, w, b, x_train=x).nmse)
        yield refit_tables(op, x, x @ w).tables.offset

    compare(learned, flag)


@pytest.mark.parametrize("flag", FLAGGED)
def test_a_budget_and_an_exact_term_under_every_flag(flag):
    x = np.random.default_rng(0).standard_normal((600, 8))
    config = FitConfig("paper", rank=1, outliers=1)
    compare(lambda: [fit_budget(x, np.ones((8, 3)), num_bytes=600, config=config).op.tables.values], flag)
