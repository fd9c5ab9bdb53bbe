"""The ops in the golden files of tests/data, one for each version of the format, and ways to damage such a file."""

import dataclasses
import io
import json
import pathlib
import zipfile

import jax
import jax.numpy as jnp
import numpy as np

from jax_maddness import ExactTerm, Factors, LookupTables, MaddnessOp, ObliqueTrees, SplitTrees, save
from jax_maddness.core.archive import digest_header

GOLDEN = pathlib.Path(__file__).parents[1] / "data" / "golden_v1.maddness"
GOLDEN_OBLIQUE = GOLDEN.with_name("golden_v2.maddness")
GOLDEN_EXACT = GOLDEN.with_name("golden_v3.maddness")
GOLDEN_FACTORS = GOLDEN.with_name("golden_v4.maddness")


def fractions(count, divisor):
    """Returns 0, 1, 2, ... divided by `divisor`, rounded as in the files.

    XLA multiplied with the reciprocal when they were written, which not all of its versions do; NumPy always rounds so.
    """
    return jnp.asarray(np.arange(count, dtype=np.float32) * np.float32(1 / divisor))


def golden_op():
    """The op in the golden file, which `python -m helpers.golden`, from tests/, wrote once. Never change either."""
    indices = (jnp.arange(12, dtype=jnp.int32) * 7 % 10).reshape(3, 4)
    thresholds = (jnp.arange(45, dtype=jnp.float32) * 0.25 - 5).reshape(3, 15).at[0, 0].set(jnp.inf).at[1, 3].set(-0.0)
    values = (jnp.arange(192) * 37 % 256).astype(jnp.uint8).reshape(4, 3, 16)
    tables = LookupTables(values, jnp.array([0.5, 1e-3, 3e38, 1e-45]), jnp.array([0.0, -1.5, 7.0, 1e-40]))
    weights = fractions(40, 7).reshape(10, 4).astype(jnp.bfloat16)
    return MaddnessOp(SplitTrees(indices, thresholds, 10), tables, weights)


def golden_oblique_op():
    """The same for the second version, which added other trees."""
    features = (jnp.arange(15, dtype=jnp.int32) * 7 % 10).reshape(3, 5)
    projections = (jnp.arange(60) * 37 % 255 - 127).astype(jnp.int8).reshape(3, 4, 5)
    thresholds = (jnp.arange(45, dtype=jnp.int32) * 1000 - 20_000).reshape(3, 15).at[0, 0].set(2**31 - 1)
    center = fractions(10, 3).at[0].set(-0.0).at[1].set(1e-40)
    scale = (jnp.arange(10, dtype=jnp.float32) * 2.5).at[8].set(2.0**100).at[9].set(2.0**-100)
    op = golden_op()
    return MaddnessOp(ObliqueTrees(features, projections, thresholds, center, scale, 10), op.tables, op.weights)


def golden_exact_op():
    """The same for the third version, which added an exact term."""
    up = (fractions(20, 9) - 1).reshape(5, 4).at[0, 0].set(-0.0).at[4, 3].set(1e-40)
    down = (jnp.arange(30, dtype=jnp.float32) * 0.75 - 9).reshape(10, 3)
    return dataclasses.replace(golden_oblique_op(), term=ExactTerm(up, jnp.array([9, 0], jnp.int32), down))


def golden_factors_op():
    """The same for the fourth version, which added terms in int8."""
    down = ((jnp.arange(96) * 37 % 255) - 127).astype(jnp.int8).reshape(3, 8, 4)
    up = ((jnp.arange(32) * 53 % 255) - 127).astype(jnp.int8).reshape(2, 4, 4)
    trees = golden_oblique_op().trees
    steps = jnp.arange(8, dtype=jnp.float32).at[7].set(2.0**100)
    term = Factors(trees.center, trees.scale, down, steps, up, jnp.array([0, 3, 15, 1], jnp.uint8))
    return dataclasses.replace(golden_oblique_op(), term=term)


def assert_equal_ops(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def assert_same_contents(path, other):
    """Two archives have the same members in the same order; where these begin may differ."""
    with zipfile.ZipFile(path) as one, zipfile.ZipFile(other) as two:
        assert one.namelist() == two.namelist()
        for name in one.namelist():
            assert one.read(name) == two.read(name), name


def rewritten(path, **changes):
    """The file with changed members, consistent as a zip archive."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members.update({name: data for name, data in changes.items() if data is not None})
    for name in [name for name, data in changes.items() if data is None]:
        del members[name]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def changed_header(path, **changes):
    with zipfile.ZipFile(path) as archive:
        header = json.loads(archive.read("header.json")) | changes
    header["sha256"] = digest_header(header)
    rewritten(path, **{"header.json": json.dumps(header).encode()})


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


if __name__ == "__main__":
    GOLDEN.parent.mkdir(exist_ok=True)
    ops = {
        GOLDEN: golden_op,
        GOLDEN_OBLIQUE: golden_oblique_op,
        GOLDEN_EXACT: golden_exact_op,
        GOLDEN_FACTORS: golden_factors_op,
    }
    for golden, make in ops.items():
        if not golden.exists():
            save(golden, make())
