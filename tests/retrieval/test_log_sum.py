"""The estimate of the log-sum of all outputs, and samples of their softmax."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jax_maddness import FitConfig, build_index, fit, sample, shard_index, top_k

M, D = 300, 12


@pytest.fixture(scope="module")
def head():
    """Weights, a bias, queries, an index and an op, with all outputs in float64."""
    rng = np.random.default_rng(0)
    factors = rng.standard_normal((4, D))
    w = np.float32(rng.standard_normal((M, 4)) @ factors + 0.3 * rng.standard_normal((M, D))).T
    x = np.float32(0.15 * rng.standard_normal((400, 4)) @ factors + 0.05 * rng.standard_normal((400, D)))
    b = np.float32(rng.standard_normal(M))
    index = build_index(w.T, 4, bias=b, queries=x[:300])
    op = fit(x[:300], w, b, num_codebooks=2, config=FitConfig("paper"), keep_weights=True)
    return w, b, x[300:], index, op, x[300:].astype(np.float64) @ w + b


def log_sum_of(outputs):
    return np.asarray(jax.nn.logsumexp(outputs, axis=-1))


@pytest.mark.parametrize("kind", ["index", "op"])
def test_the_estimate_is_within_its_error(backend, head, kind):
    w, b, x, index, op, outputs = head
    args = (index,) if kind == "index" else (op, w)
    bias = {} if kind == "index" else {"bias": b}
    call = jax.jit(functools.partial(top_k, k=3, log_sum=True), static_argnames="num_candidates")
    for candidates in (3, 30):
        values, ids, log_sum = call(x, *args, **bias, num_candidates=candidates)
        off = np.asarray(log_sum.value) - log_sum_of(outputs)
        assert log_sum.value.shape == log_sum.error.shape == (100,)
        assert (log_sum.error > 0).all()
        assert np.abs(off / log_sum.error).mean() < 1.5
        assert abs(np.mean(off)) < 3 * np.std(off) / 10 + 0.1 * np.mean(log_sum.error)
        plain = top_k(x, *args, **bias, k=3, num_candidates=candidates)
        np.testing.assert_array_equal(ids, plain[1])
        np.testing.assert_allclose(values, plain[0], rtol=1e-6)


@pytest.mark.parametrize("kind", ["index", "op"])
def test_with_all_outputs_rescored_it_is_exact(head, kind, rng):
    w, b, x, index, op, outputs = head
    args = (index,) if kind == "index" else (op, w)
    bias = {} if kind == "index" else {"bias": b}
    added = np.float32(rng.standard_normal((100, M)))
    mask = rng.random((100, M)) < 0.3
    outputs = np.where(mask, -np.inf, outputs + added)
    *_, log_sum = top_k(x, *args, **bias, num_candidates=M, exclude=mask, score_bias=added, log_sum=True)
    np.testing.assert_allclose(log_sum.value, log_sum_of(outputs), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(log_sum.error, 0)


@pytest.mark.parametrize("kind", ["index", "op"])
def test_restrictions_count(head, kind, rng):
    w, b, x, index, op, outputs = head
    args = (index,) if kind == "index" else (op, w)
    bias = {} if kind == "index" else {"bias": b}
    added = np.float32(rng.standard_normal(M))
    without = np.delete(outputs + added, [3, 17, 40], axis=1)
    *_, log_sum = top_k(x, *args, **bias, exclude=np.array([3, 17, 40]), always=[0, 1], score_bias=added, log_sum=True)
    assert np.abs((log_sum.value - log_sum_of(without)) / log_sum.error).mean() < 1.5
    everything = np.ones((2, M), bool)
    *_, none = top_k(x[:2], *args, **bias, exclude=everything, log_sum=True)
    np.testing.assert_array_equal(none.value, -np.inf)
    np.testing.assert_array_equal(none.error, 0)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1.0, 30.0, 1e4, 1e15])
def test_any_scale_is_finite(head, scale):
    w, _, x, _, op, _ = head
    index = build_index(w.T * np.float32(scale), 4, queries=x)
    x = x[:4]
    for args in ((index,), (op, w * np.float32(scale))):
        *_, log_sum = top_k(x, *args, num_candidates=20, log_sum=True)
        assert np.isfinite(log_sum.value).all()
        if args[0] is index:
            assert not np.isnan(log_sum.error).any()
            greatest = (x.astype(np.float64) @ w * scale).max(1)
            assert (np.asarray(log_sum.value) >= greatest - 1e-5 * np.abs(greatest) - 1e-5).all()


@pytest.mark.parametrize("kind", ["index", "op"])
def test_rows_that_are_not_finite(head, kind):
    w, _, x, index, op, _ = head
    x = x[:3].copy()
    x[1, 2] = np.nan
    args = (index,) if kind == "index" else (op, w)
    *_, log_sum = top_k(x, *args, log_sum=True)
    np.testing.assert_array_equal(np.isnan(log_sum.value), [False, True, False])
    np.testing.assert_array_equal(sample(jax.random.key(0), x, *args) >= 0, [True, False, True])


def test_on_shards_and_under_transformations(head):
    _, _, x, index, _, outputs = head
    mesh = jax.make_mesh((4,), ("i",))
    estimate = functools.partial(top_k, k=2, num_candidates=8, log_sum=True)
    *_, log_sum = estimate(x, shard_index(index, mesh, "i"))
    assert np.abs((log_sum.value - log_sum_of(outputs)) / log_sum.error).mean() < 1.5
    *_, whole = estimate(x, index)
    *_, mapped = jax.vmap(lambda row: estimate(row, index))(x)
    np.testing.assert_allclose(mapped.value, whole.value, rtol=1e-5)
    gradient = jax.grad(lambda x: top_k(x, index, num_candidates=M, log_sum=True)[2].value.sum())(x)
    p = np.exp(outputs - log_sum_of(outputs)[:, None])
    np.testing.assert_allclose(gradient, p @ index.vectors, rtol=1e-3, atol=1e-4)


def test_on_a_mesh_with_explicit_axes(head):
    _, _, x, index, _, outputs = head
    mesh = jax.make_mesh((4,), ("i",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        rows = jax.device_put(x, P("i"))
        *_, log_sum = jax.jit(functools.partial(top_k, log_sum=True))(rows, index)
        drawn = jax.jit(sample)(jax.random.key(0), rows, index)
    assert np.abs((log_sum.value - log_sum_of(outputs)) / log_sum.error).mean() < 1.5
    np.testing.assert_array_equal(drawn, sample(jax.random.key(0), x, index))


def test_it_needs_candidates(head):
    w, _, x, index, op, _ = head
    for args in ((index,), (op, w)):
        with pytest.raises(ValueError, match="`log_sum` needs candidates"):
            top_k(x, *args, num_candidates=0, log_sum=True)
        with pytest.raises(TypeError, match="`log_sum`"):
            top_k(x, *args, log_sum=2)


@pytest.mark.parametrize("kind", ["index", "op"])
def test_samples_have_the_probabilities_of_the_softmax(head, kind):
    w, b, x, index, op, outputs = head
    args = (index,) if kind == "index" else (op, w)
    bias = {} if kind == "index" else {"bias": b}
    rows, draws = x[:2], 4000
    repeated = jnp.repeat(rows, draws, 0)
    for temperature, excluded in ((1.0, []), (0.5, [5, 6])):
        logits = outputs[:2] / temperature
        logits[:, excluded] = -np.inf
        p = np.exp(logits - log_sum_of(logits)[:, None])
        exclude = np.array(excluded, int)
        drawn = sample(
            jax.random.key(3), repeated, *args, **bias, temperature=temperature, exclude=exclude, num_candidates=120
        )
        for row in range(2):
            counts = np.bincount(drawn[row * draws : (row + 1) * draws], minlength=M)
            common = p[row] * draws >= 5
            wanted = np.append(p[row][common], p[row][~common].sum()) * draws
            got = np.append(counts[common], counts[~common].sum())
            chi_squared = ((got - wanted) ** 2 / np.maximum(wanted, 1e-9)).sum()
            freedom = len(wanted) - 1
            assert chi_squared < freedom + 5 * np.sqrt(2 * freedom)
            assert not counts[excluded].any()


def test_samples_by_temperature_key_and_batch(head):
    w, b, x, index, op, outputs = head
    np.testing.assert_array_equal(sample(jax.random.key(0), x, index, temperature=0), outputs.argmax(1))
    one, same, other = (sample(jax.random.key(i), x, index) for i in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    by_row = jnp.where(jnp.arange(100) < 50, 0.0, 5.0)
    drawn = jax.jit(sample)(jax.random.key(1), x, index, temperature=by_row)
    np.testing.assert_array_equal(drawn[:50], outputs.argmax(1)[:50])
    keys = jax.random.split(jax.random.key(0), 100)
    assert jax.vmap(lambda key, row: sample(key, row, index))(keys, x).shape == (100,)
    assert sample(jax.random.key(0), x[0], op, w, bias=b).shape == ()
    added = jnp.zeros(M).at[7].set(1e6)
    np.testing.assert_array_equal(sample(jax.random.key(0), x, index, score_bias=added), 7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "`temperature`"),
        ({"temperature": np.nan}, "`temperature`"),
        ({"temperature": np.ones(3)}, "`temperature` has shape"),
        ({"num_candidates": 0}, "`num_candidates`"),
        ({"score_bias": np.ones(3, np.float32)}, "`score_bias` has shape"),
    ],
)
def test_wrong_arguments_of_samples(head, options, message):
    with pytest.raises(ValueError, match=message):
        sample(jax.random.key(0), head[2], head[3], **options)
