"""Retrieval under every flag, transformation and kind of mesh of JAX."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.ops import random_op
from helpers.transformations.cases import FUNCTIONS
from jax import export
from jax.sharding import AxisType, PartitionSpec

from jax_maddness import (
    add_vectors,
    amm_with_exact_rows,
    build_index,
    fit_outlier_rows,
    max_over_positions,
    remove_vectors,
    search,
    shard_index,
    top_k,
    with_capacity,
)
from jax_maddness.retrieval.index import METRICS

COUNT, FEATURES, ROWS = 150, 8, 16


@pytest.fixture(scope="module")
def rows():
    return np.float32(np.random.default_rng(0).standard_normal((ROWS, FEATURES)))


@pytest.fixture(scope="module")
def vectors():
    return np.float32(np.random.default_rng(1).standard_normal((COUNT, FEATURES)))


@pytest.fixture(scope="module")
def indexes(vectors):
    return {metric: build_index(vectors, 4, metric=metric) for metric in METRICS}


@pytest.fixture(scope="module")
def layer():
    rng = np.random.default_rng(2)
    return random_op(rng, FEATURES, 4, 24, weights=True), np.float32(rng.standard_normal(24))


def everything(rows, indexes, layer):
    """Results of all functions that take rows, by name."""
    op, bias = layer
    rule = fit_outlier_rows(np.asarray(rows), share=0.2)
    mask = np.arange(ROWS) % 3 == 1
    results = {"rule": rule(rows), "top_k, look-ups only": top_k(rows, op, k=3, num_candidates=0)}
    for metric in METRICS:
        for num_candidates in (0, 32, COUNT):
            results[f"{metric}, {num_candidates}"] = search(rows, indexes[metric], 5, num_candidates=num_candidates)
    for name, x in {"float32": rows, "bfloat16": jnp.asarray(rows, jnp.bfloat16)}.items():
        results |= {
            f"top_k, {name}": top_k(x, op, k=3, bias=bias, num_candidates=6),
            f"maximum, {name}": max_over_positions(x.reshape(4, 4, FEATURES), op, bias=bias, num_candidates=2),
            f"rule, {name}": amm_with_exact_rows(x, op, rule, 3, bias=bias),
            f"mask, {name}": amm_with_exact_rows(x.reshape(4, 4, FEATURES), op, mask.reshape(4, 4), 5),
        }
    return results


@pytest.fixture(scope="module")
def usual(rows, indexes, layer):
    return everything(rows, indexes, layer)


def assert_close(results, expected):
    """Values agree up to the order of additions, and everything else exactly."""
    for name, want in expected.items():
        for a, b in zip(jax.tree.leaves(results[name]), jax.tree.leaves(want), strict=True):
            assert a.dtype == b.dtype, name
            tolerance = 2e-2 if a.dtype == jnp.bfloat16 else 1e-5
            np.testing.assert_allclose(np.float64(a), np.float64(b), rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize(
    "flag",
    [
        lambda: jax.numpy_rank_promotion("raise"),
        lambda: jax.enable_x64(True),
        lambda: jax.debug_nans(True),
        lambda: jax.numpy_dtype_promotion("strict"),
    ],
    ids=["rank_promotion", "x64", "debug_nans", "strict"],
)
def test_flags_play_no_part(flag, rows, vectors, indexes, layer, usual):
    with flag():
        assert_close(everything(rows, indexes, layer), usual)
        index = build_index(vectors, 4, metric="l2")
        np.testing.assert_array_equal(index.codes, indexes["l2"].codes)
        again = add_vectors(remove_vectors(index, [3, 5]), vectors[[3, 5]], [3, 5])
        np.testing.assert_array_equal(again.codes, index.codes)
        roomy = remove_vectors(with_capacity(index, 2 * COUNT), [3, 5])
        assert_close({"": search(rows, roomy, 5)}, {"": search(rows, remove_vectors(index, [3, 5]), 5)})
        roomy = add_vectors(roomy, vectors[[3, 5]], [3, 5], donate=True)
        np.testing.assert_array_equal(with_capacity(roomy, None).codes, index.codes)
        _, ids = search(np.float64(rows), again, 5, num_candidates=32)
        np.testing.assert_array_equal(ids, usual["l2, 32"][1])


@pytest.mark.parametrize("k", [3, np.int64(3), np.uint8(3), jnp.int32(3)], ids=["int", "int64", "uint8", "jax"])
def test_integers_of_any_kind_are_taken(k, rows, indexes, layer):
    assert search(rows, indexes["ip"], k, num_candidates=k)[1].shape == (ROWS, 3)
    assert top_k(rows, layer[0], k=k, num_candidates=k)[1].shape == (ROWS, 3)


@pytest.mark.parametrize(
    ("metric", "num_candidates"), [("ip", 0), ("ip", 32), ("l2", 0), ("l2", 32), ("cosine", COUNT)]
)
def test_scores_have_derivatives_in_both_modes(metric, num_candidates, rows, vectors, indexes):
    query, index = rows[0], indexes[metric]
    best = int(search(query, index, 1, num_candidates=num_candidates)[1][0])

    def score(q):
        return search(q, index, 1, num_candidates=num_candidates)[0][0]

    def exact(q):
        v = vectors[best]
        if metric == "l2":
            return -((q - v) ** 2).sum()
        return q @ v if metric == "ip" else q @ v / jnp.linalg.norm(q) / jnp.linalg.norm(v)

    forward, backward = jax.jacfwd(score)(query), jax.grad(score)(query)
    np.testing.assert_allclose(forward, backward, rtol=1e-4, atol=1e-5)
    hessian = jax.hessian(score)(query)
    if num_candidates:
        np.testing.assert_allclose(forward, jax.grad(exact)(query), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(hessian, jax.hessian(exact)(query), rtol=1e-3, atol=1e-4)
    tangent = jax.jvp(score, (query,), (vectors[1],))[1]
    np.testing.assert_allclose(tangent, forward @ vectors[1], rtol=1e-4, atol=1e-5)


def test_missing_neighbors_have_no_derivative():
    """Each query asks for 30 neighbors among 20 vectors; no bias of a vector is a part of the ten missing scores."""
    case = FUNCTIONS["search"]
    index = dataclasses.replace(case.state, bias=jnp.zeros(20))
    gradient = jax.grad(lambda i: search(case.x[0], i, 30, num_candidates=32)[0].sum(), allow_int=True)(index)
    np.testing.assert_array_equal(gradient.bias, np.full(20, 3.0))  # each of three queries finds every vector once


@pytest.mark.parametrize("num_candidates", [0, 32, COUNT])
def test_a_symbolic_number_of_rows_is_exported(num_candidates, rows, indexes):
    def f(q):
        return search(q, indexes["l2"], 3, num_candidates=num_candidates)

    (n,) = export.symbolic_shape("n")
    checks = [export.DisabledSafetyCheck.custom_call(f"jax_maddness_{name}") for name in ("scan", "rescore")]
    shape = jax.ShapeDtypeStruct((n, FEATURES), jnp.float32)
    exported = export.export(jax.jit(f), disabled_checks=checks)(shape)
    for part in (rows, rows[:3]):
        for a, b in zip(exported.call(part), f(part), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.parametrize("spec", [PartitionSpec(), PartitionSpec(("x", "y")), PartitionSpec("x", "y")])
def test_rows_on_an_explicit_mesh(spec, rows, indexes, layer, usual):
    with jax.set_mesh(jax.make_mesh((2, 2), ("x", "y"), axis_types=(AxisType.Explicit,) * 2)):
        sharded = jax.device_put(rows, spec)
        op, bias = layer
        rule = fit_outlier_rows(rows, share=0.2)
        results = {
            name: jax.jit(function)(sharded)
            for name, function in {
                "l2, 32": lambda x: search(x, indexes["l2"], 5, num_candidates=32),
                f"cosine, {COUNT}": lambda x: search(x, indexes["cosine"], 5, num_candidates=COUNT),
                "ip, 32": lambda x: search(x, indexes["ip"], 5, num_candidates=32),
                "top_k, float32": lambda x: top_k(x, op, k=3, bias=bias, num_candidates=6),
                "rule, float32": lambda x: amm_with_exact_rows(x, op, rule, 3, bias=bias),
            }.items()
        }
        leading = jax.device_put(rows.reshape(4, 4, FEATURES), PartitionSpec(*spec[:1], *spec[1:] and (None, spec[1])))
        results["maximum, float32"] = max_over_positions(leading, op, bias=bias, num_candidates=2)
        results["mask, float32"] = amm_with_exact_rows(leading, op, np.arange(ROWS).reshape(4, 4) % 3 == 1, 5)
    assert_close(results, {name: usual[name] for name in results})


def test_a_sharded_index_on_an_explicit_mesh(rows, indexes, usual):
    mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Explicit,))
    index = shard_index(indexes["l2"], mesh, "x")
    assert_close({"l2, 150": search(rows, index, 5, num_candidates=COUNT)}, {"l2, 150": usual["l2, 150"]})
    with jax.set_mesh(mesh):
        got = search(jax.device_put(rows, PartitionSpec("x")), index, 5, num_candidates=COUNT)
    assert_close({"l2, 150": got}, {"l2, 150": usual["l2, 150"]})
