"""Kernels against the definitions in NumPy (helpers/references.py), through JAX, on every tier and in pure JAX.

Sizes, dtypes, strides and contents are random, with NaN, infinities and denormals among the rows. Codes, sums and
positions must be equal; floats may differ by the rounding of the steps that follow the sums.
"""

import jax
import jax.numpy as jnp
import numpy as np
from fuzz import campaign
from helpers import references
from helpers.ops import random_oblique_trees, random_op, random_rows, random_tables, random_trees

from jax_maddness import aggregate, amm, encode, testing, with_small_batch_tables
from jax_maddness.core import ffi
from jax_maddness.core.amm import amm_of_codes
from jax_maddness.core.greatest import greatest
from jax_maddness.core.look_up import look_up
from jax_maddness.retrieval import scan
from jax_maddness.retrieval.rescore import rescore

DTYPES = tuple(map(jnp.dtype, (jnp.float32, jnp.bfloat16, jnp.float16)))
_PURE_JAX_EVERY = 8
"""Cases for each that runs in pure JAX, too, which compiles for longer."""


def backends(rng):
    """Contexts of every tier and, now and then, of pure JAX, each with its name."""
    found = [(tier, testing.force_tier(tier)) for tier in ffi.supported_tiers()]
    if not found or rng.integers(_PURE_JAX_EVERY) == 0:
        found.append(("jax", testing.force_backend("jax")))
    return found


def size(rng, most, least=0):
    """A size, often small, often beside a multiple of 16."""
    near = 16 * rng.integers(most // 16 + 1) + rng.integers(-1, 2)
    return int(np.clip(rng.choice([least, 1, near, rng.integers(least, most + 1)]), least, most))


def with_strides(rng, x):
    """The same array with other strides or another alignment."""
    kind = rng.integers(4)
    if kind == 0:
        return x
    if kind == 1:
        return np.asfortranarray(x)
    if kind == 2:
        return np.ascontiguousarray(x[..., ::-1])[..., ::-1]
    raw = np.empty(x.nbytes + x.itemsize, np.uint8)[x.itemsize :]  # beside the alignment that XLA likes
    raw.view(x.dtype).reshape(x.shape)[...] = x
    return raw.view(x.dtype).reshape(x.shape)


def rows(rng, count, features):
    """Rows of a random dtype, a third of the time with special values, as they are passed and in two dimensions."""
    with np.errstate(over="ignore", invalid="ignore"):
        x = random_rows(rng, count, features, special=0.2 * (rng.integers(3) == 0)).astype(rng.choice(DTYPES))
    lead = (2, count // 2) if count % 2 == 0 and rng.integers(3) == 0 else (count,)
    return with_strides(rng, x.reshape(*lead, features)), x


def random_codes(rng, count, codebooks):
    """Codes, with noise in the upper four bits, which kernels ignore, and without."""
    codes = rng.integers(0, 256, (count, codebooks)).astype(np.uint8)
    return with_strides(rng, codes), codes & 15


def numpy_codes(x, trees):
    """Encodes rows by the definition of their kind of trees."""
    arrays = [np.asarray(a) for a in trees.arrays()]
    return (references.encode_oblique if len(arrays) > 2 else references.encode)(x, *arrays)


def check_outputs(y, sums, tables, dtype):
    """Checks `scale * sums + offset` in `dtype`: off by a rounding of each of the two steps, and one to `dtype`."""
    product = np.asarray(tables.scale, np.float64) * sums
    expected = product + np.asarray(tables.offset, np.float64)
    bound = np.finfo(np.float32).eps * (np.abs(product) + np.abs(expected))
    bound = bound + float(jnp.finfo(dtype).eps) * np.abs(expected) + float(jnp.finfo(dtype).smallest_subnormal)
    assert y.dtype == dtype
    assert (np.abs(np.asarray(y, np.float64).reshape(expected.shape) - expected) <= bound).all()


def encode_case(rng):
    """`encode` and `amm`, with trees of both kinds; in the small-batch layout where there are few rows."""
    features, codebooks, outputs = size(rng, 70, 1), size(rng, 40, 1), size(rng, 70)
    count = size(rng, 8) if rng.integers(2) else size(rng, 150)
    kind = random_trees if rng.integers(2) else random_oblique_trees
    op = random_op(rng, features, codebooks, outputs, make_trees=lambda *args: kind(*args, special=0.1))
    if rng.integers(2):
        op = with_small_batch_tables(op)
    x, flat = rows(rng, count, features)
    codes = numpy_codes(flat, op.trees)
    sums = references.aggregate(codes, np.asarray(op.tables.values))
    for name, context in backends(rng):
        with context:
            np.testing.assert_array_equal(encode(x, op.trees).reshape(codes.shape), codes, err_msg=name)
            check_outputs(amm(x, op), sums, op.tables, x.dtype)


def aggregate_case(rng):
    """`aggregate` and `amm_of_codes`."""
    codebooks = size(rng, 40, 1) if rng.integers(8) else size(rng, 600, 1)
    (codes, low), tables = random_codes(rng, size(rng, 100), codebooks), random_tables(rng, codebooks, size(rng, 40))
    sums, dtype = references.aggregate(low, np.asarray(tables.values)), rng.choice(DTYPES[:2])  # f16 overflows
    for name, context in backends(rng):
        with context:
            np.testing.assert_array_equal(aggregate(codes, tables), sums, err_msg=name)
            check_outputs(amm_of_codes(codes, tables, dtype), sums, tables, dtype)


def greatest_case(rng):
    """The greatest sums over rows."""
    examples, count, codebooks, k = size(rng, 3), size(rng, 80), size(rng, 20, 1), int(rng.integers(1, 18))
    values = rng.integers(0, rng.choice([2, 256]), (size(rng, 30), codebooks, 16)).astype(np.uint8)
    codes = rng.integers(0, 16, (examples, count, codebooks)).astype(np.uint8)
    skipped = rng.random((examples, count)) < rng.choice([0.0, 0.3, 1.0])
    for name, context in backends(rng):
        with context:
            best, at = greatest(jnp.asarray(codes), jnp.asarray(values), jnp.asarray(skipped), k)
        for i in range(examples):
            expected = references.greatest(references.aggregate(codes[i], values), skipped[i], k)
            np.testing.assert_array_equal(best[i], expected[0], err_msg=name)
            np.testing.assert_array_equal(at[i], expected[1], err_msg=name)


def scan_case(rng):
    """The scan over stored codes."""
    vectors, codebooks, k = size(rng, 200), size(rng, 20, 1), size(rng, 40)
    codes = rng.integers(0, 16, (vectors, codebooks)).astype(np.uint8)
    tables = rng.integers(0, rng.choice([2, 256]), (size(rng, 6), codebooks, 16)).astype(np.uint8)
    packed, count = scan.pack(jnp.asarray(codes)), int(rng.integers(-1, vectors + 1))
    expected = references.scan(codes, tables, count, k)
    for name, context in backends(rng):
        with context:
            for got, wanted in zip(scan.scan(packed, jnp.asarray(tables), count, k), expected, strict=True):
                np.testing.assert_array_equal(got, wanted, err_msg=name)


def rescore_case(rng):
    """Exact products of queries with vectors at positions."""
    features, run = size(rng, 100, 1), int(rng.integers(1, 4))
    vectors = rng.standard_normal((size(rng, 60, 1), features)).astype(rng.choice(DTYPES))
    queries = rng.standard_normal((size(rng, 6), run * features)).astype(rng.choice(DTYPES))
    positions = rng.integers(-2, len(vectors) + 2, (len(queries), size(rng, 30))).astype(np.int32)
    expected = references.rescore(queries, vectors, positions)
    bound = references.rescore(*(np.abs(a.astype(np.float32)) for a in (queries, vectors)), positions)
    bound = np.where(np.isfinite(bound), bound, 0) * (run * features + 1) * 2.0**-24
    for name, context in backends(rng):
        with context:
            got = np.asarray(rescore(with_strides(rng, queries), vectors, positions), np.float64)
        known = np.isfinite(expected)
        np.testing.assert_array_equal(got[~known], expected[~known], err_msg=name)
        assert (np.abs(got[known] - expected[known]) <= bound[known]).all(), name


def look_up_case(rng):
    """Float tables, and their gradient."""
    (codes, low), outputs = random_codes(rng, size(rng, 100), size(rng, 30, 1)), size(rng, 40)
    values = rng.standard_normal((outputs, low.shape[1], 16)).astype(np.float32)
    dy = rng.standard_normal((len(low), outputs)).astype(np.float32)
    expected = references.look_up(low, values), references.look_up_gradient(low, dy)
    bounds = references.look_up(low, np.abs(values)), references.look_up_gradient(low, np.abs(dy))
    for name, context in backends(rng):
        with context:
            y, gradient = jax.vjp(lambda values: look_up(jnp.asarray(codes), values), jnp.asarray(values))
            got = np.asarray(y), np.asarray(gradient(jnp.asarray(dy))[0])
        for g, e, b, terms in zip(got, expected, bounds, (low.shape[1], len(low)), strict=True):
            assert (np.abs(g - e) <= b * (terms + 1) * 2.0**-24).all(), name


CASES = (encode_case, encode_case, aggregate_case, greatest_case, scan_case, rescore_case, look_up_case)


def case(rng):
    """One case of one family of kernels."""
    CASES[rng.integers(len(CASES))](rng)


if __name__ == "__main__":
    campaign.main(case, "kernels", __doc__)
