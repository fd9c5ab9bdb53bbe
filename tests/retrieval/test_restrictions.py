"""`exclude`, `always` and `score_bias` of `search` and `top_k`: exact where all is rescored, and as if removed else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.neighbours import CODEBOOKS, clustered
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import export

from jax_maddness import (
    FitConfig,
    build_index,
    disabled_export_checks,
    fit,
    remove_vectors,
    sample,
    search,
    shard_index,
    top_k,
)

COUNT, FEATURES = 90, clustered(1, 1).shape[1]


@pytest.fixture(scope="module")
def vectors():
    return clustered(3, COUNT)


@pytest.fixture(scope="module")
def queries():
    return clustered(4, 6)


@pytest.fixture(scope="module")
def heads(vectors, queries):
    """An index and an op over the same outputs, and the bias that both have."""
    bias = np.linspace(-1, 1, COUNT, dtype=np.float32)
    index = build_index(vectors, CODEBOOKS, bias=bias, queries=queries)
    op = fit(clustered(5, 500), vectors.T, bias=bias, num_codebooks=4, config=FitConfig("paper"), keep_weights=True)
    return {"index": (index, {}), "op": (op, {"bias": bias})}


def exact(queries, vectors, bias, k, excluded=None, score_bias=0.0):
    """Values and outputs of the definition, in float64; -inf and -1 where too few are left."""
    y = queries.astype(np.float64) @ vectors.T.astype(np.float64) + bias + score_bias
    y = np.where(np.zeros_like(y, bool) if excluded is None else excluded, -np.inf, y)
    order = np.argsort(-y, axis=-1, kind="stable")[..., :k]
    values = np.take_along_axis(y, order, -1)
    return values, np.where(values == -np.inf, -1, order)


def assert_same(actual, desired):
    np.testing.assert_array_equal(actual[1], desired[1])
    np.testing.assert_allclose(actual[0], desired[0], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("head", ["index", "op"])
@pytest.mark.parametrize("per_row", [False, True])
def test_all_rescored_is_exact(heads, head, per_row, queries, vectors, rng):
    """Whatever is excluded, by ids and by masks, and whatever is added."""
    target, options = heads[head]
    rows = (len(queries),) if per_row else ()
    ids = rng.integers(-1, COUNT + 5, (*rows, 7))
    mask = rng.random((*rows, COUNT)) < 0.6
    added = rng.standard_normal((*rows, COUNT)).astype(np.float32) * 30
    dense = np.zeros((*rows, COUNT + 6), bool)
    np.put_along_axis(dense, ids, True, -1)  # -1 and unknown ids fall into what is cut off
    bias, always = np.linspace(-1, 1, COUNT), ids[..., :2]
    run = lambda **restrictions: top_k(queries, target, k=5, num_candidates=COUNT, **options, **restrictions)  # noqa: E731
    assert_same(run(exclude=ids), exact(queries, vectors, bias, 5, dense[..., :COUNT]))
    assert_same(run(exclude=mask, always=always), exact(queries, vectors, bias, 5, mask))
    assert_same(run(score_bias=added), exact(queries, vectors, bias, 5, score_bias=added))
    assert_same(run(exclude=mask, score_bias=added), exact(queries, vectors, bias, 5, mask, added))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "share"), [(0, 0.5), (5, 0.05), (5, 0.95), (30, 0.5)])
def test_what_is_excluded_might_as_well_be_removed(backend, vectors, queries, metric, number, share, rng):
    """Codes and tables are the same, so that candidates and scores are equal, too."""
    index, mask = build_index(vectors, CODEBOOKS, metric=metric), rng.random(COUNT) < share
    ids = np.flatnonzero(mask)
    removed = search(queries, remove_vectors(index, ids), 5, num_candidates=number)
    for exclude in (ids, np.tile(mask, (len(queries), 1))):
        scores, found = search(queries, index, 5, num_candidates=number, exclude=exclude)
        np.testing.assert_array_equal(found, removed[1])
        np.testing.assert_allclose(scores, removed[0], rtol=1e-5, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_always_is_rescored_and_listed_once(data):
    vectors, queries = clustered(3, COUNT), clustered(4, 3)
    index = build_index(vectors, CODEBOOKS)
    always = data.draw(st.lists(st.integers(-2, COUNT + 2), max_size=5))
    exclude = data.draw(st.lists(st.integers(-2, COUNT + 2), max_size=3))
    scores, ids = search(queries, index, COUNT // 3, num_candidates=COUNT // 3, always=always, exclude=exclude)
    found = np.asarray(ids)
    full = search(queries, index, COUNT, num_candidates=COUNT)
    by_id = np.take_along_axis(np.asarray(full[0]), np.argsort(np.asarray(full[1]), -1), -1)
    for row, row_scores, true in zip(found, np.asarray(scores), by_id, strict=True):
        kept = row[row >= 0]
        assert len(set(kept)) == len(kept)
        assert not set(kept) & set(exclude)
        np.testing.assert_allclose(row_scores[row >= 0], true[kept], rtol=1e-5, atol=1e-5)
        worst = row_scores[-1] + 1e-4  # up to rounding
        assert all(i in kept or true[i] <= worst for i in set(always) - set(exclude) if 0 <= i < COUNT)


def test_a_bias_chooses_candidates(heads, queries):
    """The codes alone would never propose an output that only the bias makes the greatest."""
    for target, options in heads.values():
        added = np.full(COUNT, -5000, np.float32)
        added[[3, 70]] = 5000
        _, outputs = top_k(queries, target, k=2, num_candidates=2, score_bias=added, **options)
        assert (np.sort(outputs, -1) == [3, 70]).all()


@pytest.mark.slow
def test_in_jit_vmap_grad_and_shards(heads, queries, vectors, rng):
    index, _ = heads["index"]
    mask = rng.random((len(queries), COUNT)) < 0.7
    always, ids = rng.integers(0, COUNT, (len(queries), 2)), rng.integers(0, COUNT, 4)
    added = rng.standard_normal((len(queries), COUNT)).astype(np.float32)
    run = lambda q, mask, always, added: search(  # noqa: E731
        q, index, 4, num_candidates=6, exclude=mask, always=always, score_bias=added
    )
    eager = run(queries, mask, always, added)
    for other in (jax.jit(run), jax.vmap(run)):
        scores, found = other(queries, mask, always, added)
        np.testing.assert_array_equal(found, eager[1])
        np.testing.assert_allclose(scores, eager[0], rtol=1e-5)
    gradient = jax.grad(lambda added: run(queries, mask, always, added)[0][:, 0].sum())(jnp.asarray(added))
    np.testing.assert_array_equal(gradient, np.arange(COUNT) == np.asarray(eager[1])[:, :1])

    mesh = jax.make_mesh((4,), ("v",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = shard_index(index, mesh, "v")
    for restrictions in ({"exclude": mask}, {"exclude": ids, "always": always}, {"score_bias": added}):
        one, many = (search(queries, i, 4, num_candidates=COUNT, **restrictions) for i in (index, sharded))
        np.testing.assert_array_equal(one[1], many[1])
        np.testing.assert_allclose(one[0], many[0], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["index", "op"])
def test_rows_on_an_explicit_mesh(heads, head, queries, rng):
    mesh = jax.make_mesh((2,), ("r",), axis_types=(jax.sharding.AxisType.Explicit,))
    target, options = heads[head]
    mask, always = rng.random((len(queries), COUNT)) < 0.7, np.array([1])
    run = lambda x: top_k(x, target, k=3, num_candidates=9, exclude=mask, always=always, **options)  # noqa: E731
    expected = run(queries)
    with jax.set_mesh(mesh):
        rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("r"))
        actual = jax.jit(run)(jax.device_put(queries, rows))
    np.testing.assert_array_equal(actual[1], expected[1])
    np.testing.assert_allclose(actual[0], expected[0], rtol=1e-5)


def test_nothing_left(heads, queries):
    for target, options in heads.values():
        values, outputs = top_k(queries, target, k=2, num_candidates=4, exclude=np.ones(COUNT, bool), **options)
        assert (np.asarray(outputs) == -1).all()
        assert (np.asarray(values) == -np.inf).all()
        _, outputs = top_k(queries, target, k=3, num_candidates=4, exclude=np.arange(COUNT) > 1, **options)
        assert (np.sort(outputs, -1) == [-1, 0, 1]).all()


def test_rows_with_nan_stay_as_they_are(heads, queries):
    rows = queries.copy()
    rows[1, 2] = np.nan
    for target, options in heads.values():
        values, outputs = top_k(rows, target, k=2, exclude=[0], always=[1], **options)
        assert np.isnan(values[1]).all()
        assert (np.asarray(outputs)[1] == -1).all()


def test_large_ids_are_unknown(vectors, queries):
    """They must not be cut to 32 bits."""
    index = build_index(vectors, CODEBOOKS)
    plain = search(queries, index, 3)
    for ids in (
        np.int64([2**32, 2**40 + 1]),
        np.uint32([2**31]),
        np.uint64([2**63]),
        np.uint8([200]),
        np.int64([-(2**35)]),
        [],
    ):
        np.testing.assert_array_equal(search(queries, index, 3, exclude=ids, always=ids)[1], plain[1])


@pytest.mark.parametrize("head", ["index", "op"])
def test_no_rows_and_no_ids(heads, head, queries):
    """Lists of each row may be empty, and so may the rows."""
    target, options = heads[head]
    plain = top_k(queries, target, k=2, **options)
    none = np.zeros((len(queries), 0), int)
    np.testing.assert_array_equal(top_k(queries, target, k=2, exclude=none, always=none, **options)[1], plain[1])
    values, outputs = top_k(queries[:0], target, k=2, exclude=none[:0], always=np.array([1]), **options)
    assert values.shape == outputs.shape == (0, 2)


@pytest.mark.parametrize(
    ("restrictions", "error", "words"),
    [
        ({"exclude": np.zeros(COUNT - 1, bool)}, ValueError, "`exclude` has shape"),
        ({"exclude": np.zeros((2, 3), int)}, ValueError, "`exclude` has shape"),
        ({"exclude": 3}, ValueError, "`exclude` has shape"),
        ({"exclude": [0.5]}, TypeError, "`exclude` is float"),
        ({"always": np.zeros(COUNT, bool)}, TypeError, "`always` is bool"),
        ({"always": [1], "num_candidates": 0}, ValueError, "`num_candidates` is 0"),
        ({"score_bias": np.full(COUNT, np.nan)}, ValueError, "pass `exclude`"),
        ({"score_bias": np.full(COUNT, -np.inf)}, ValueError, "pass `exclude`"),
        ({"score_bias": np.zeros(3)}, ValueError, "`score_bias` has shape"),
        ({"score_bias": np.zeros(COUNT, int)}, TypeError, "`score_bias` is int64"),
    ],
)
@pytest.mark.parametrize("head", ["index", "op"])
def test_bad_restrictions_are_refused(heads, queries, head, restrictions, error, words):
    target, options = heads[head]
    with pytest.raises(error, match=words):
        top_k(queries, target, k=2, **options, **restrictions)


def test_a_bias_needs_products(vectors, queries):
    with pytest.raises(ValueError, match="added to products"):
        search(queries, build_index(vectors, CODEBOOKS, metric="l2"), 2, score_bias=np.zeros(COUNT))


def test_recall_chooses_candidates_of_a_head(heads, queries):
    index, _ = heads["index"]
    index = dataclasses.replace(index, recall=((8.0, 0.5, 0.5, 0.5), (64.0, 1.0, 1.0, 1.0)))
    np.testing.assert_array_equal(
        top_k(queries, index, k=1, recall=0.9)[1], top_k(queries, index, k=1, num_candidates=64)[1]
    )
    with pytest.raises(ValueError, match="needs an index"):
        top_k(queries, heads["op"][0], k=1, recall=0.9)


@pytest.mark.slow
@pytest.mark.parametrize(("head", "num_candidates"), [("index", 10), ("index", COUNT), ("op", 10)])
@pytest.mark.parametrize("per_row", [False, True])
def test_strict_promotion_and_a_symbolic_number_of_rows(heads, head, per_row, num_candidates, queries, rng):
    """With all restrictions and the log-sum, and for samples."""
    target, options = heads[head]
    rows, checks = (len(queries),) if per_row else (), disabled_export_checks()
    mask = jnp.asarray(rng.random((*rows, COUNT)) < 0.3)
    ids, always = (jnp.asarray(rng.integers(0, COUNT, (*rows, n)), jnp.int32) for n in (4, 2))
    added = jnp.asarray(rng.standard_normal((*rows, COUNT)), jnp.float32)
    restrictions = {"exclude": mask, "always": always, "score_bias": added}, {"exclude": ids}
    temperature = jnp.linspace(0.5, 2, len(queries)) if per_row else 1.5

    def call(x, given, temperature):
        both = [top_k(x, target, k=3, num_candidates=num_candidates, log_sum=True, **r, **options) for r in given]
        kept = {name: r for name, r in given[0].items() if name != "always"}
        key = jax.random.key(0)
        return both, sample(key, x, target, num_candidates=num_candidates, temperature=temperature, **kept, **options)

    args = jnp.asarray(queries), restrictions, temperature
    expected = jax.jit(call)(*args)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        strict = jax.jit(call)(*args)
        (n,) = export.symbolic_shape("n")
        free = lambda a: jax.ShapeDtypeStruct((n, *a.shape[1:]), a.dtype)  # noqa: E731
        shapes = jax.tree.map(free, args) if per_row else (free(args[0]), *args[1:])
        exported = export.export(jax.jit(call), disabled_checks=checks)(*shapes).call(*args)
    for result in (strict, exported):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), result, expected)
