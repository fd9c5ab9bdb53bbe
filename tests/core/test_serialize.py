"""save / load: one stable file; whatever happens to it, a clear error or the same op."""

import dataclasses
import io
import json
import pathlib
import tracemalloc
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.ops import random_oblique_trees, random_op, random_rows, random_term
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_maddness import (
    ExactTerm,
    Factors,
    LookupTables,
    MaddnessOp,
    ObliqueTrees,
    SplitTrees,
    amm,
    load,
    load_index,
    save,
)
from jax_maddness.core import serialize
from jax_maddness.core.archive import describe, digest_header

GOLDEN = pathlib.Path(__file__).parents[1] / "data" / "golden_v1.maddness"
GOLDEN_OBLIQUE = GOLDEN.with_name("golden_v2.maddness")
GOLDEN_EXACT = GOLDEN.with_name("golden_v3.maddness")
GOLDEN_FACTORS = GOLDEN.with_name("golden_v4.maddness")


def golden_op():
    """The op in the golden file, which `python tests/test_serialize.py` wrote once. Never change either."""
    indices = (jnp.arange(12, dtype=jnp.int32) * 7 % 10).reshape(3, 4)
    thresholds = (jnp.arange(45, dtype=jnp.float32) * 0.25 - 5).reshape(3, 15).at[0, 0].set(jnp.inf).at[1, 3].set(-0.0)
    values = (jnp.arange(192) * 37 % 256).astype(jnp.uint8).reshape(4, 3, 16)
    tables = LookupTables(values, jnp.array([0.5, 1e-3, 3e38, 1e-45]), jnp.array([0.0, -1.5, 7.0, 1e-40]))
    weights = (jnp.arange(40, dtype=jnp.float32) / 7).reshape(10, 4).astype(jnp.bfloat16)
    return MaddnessOp(SplitTrees(indices, thresholds, 10), tables, weights)


def golden_oblique_op():
    """The same for the second version, which added other trees."""
    features = (jnp.arange(15, dtype=jnp.int32) * 7 % 10).reshape(3, 5)
    projections = (jnp.arange(60) * 37 % 255 - 127).astype(jnp.int8).reshape(3, 4, 5)
    thresholds = (jnp.arange(45, dtype=jnp.int32) * 1000 - 20_000).reshape(3, 15).at[0, 0].set(2**31 - 1)
    center = (jnp.arange(10, dtype=jnp.float32) / 3).at[0].set(-0.0).at[1].set(1e-40)
    scale = (jnp.arange(10, dtype=jnp.float32) * 2.5).at[8].set(2.0**100).at[9].set(2.0**-100)
    op = golden_op()
    return MaddnessOp(ObliqueTrees(features, projections, thresholds, center, scale, 10), op.tables, op.weights)


def golden_exact_op():
    """The same for the third version, which added an exact term."""
    up = (jnp.arange(20, dtype=jnp.float32) / 9 - 1).reshape(5, 4).at[0, 0].set(-0.0).at[4, 3].set(1e-40)
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


@pytest.fixture
def op(rng):
    return random_op(rng, 7, 3, 5, weights=True)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "layer.maddness"


@pytest.mark.parametrize("dtype", [None, jnp.float32, jnp.bfloat16, jnp.float16])
def test_round_trip(path, op, dtype):
    op = MaddnessOp(op.trees, op.tables, None if dtype is None else op.weights.astype(dtype))
    save(path, op)
    assert_equal_ops(load(path), op)
    save(path, load(path))
    assert_equal_ops(load(str(path)), op)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_the_golden_file_still_loads_and_is_still_written(path):
    assert_equal_ops(load(GOLDEN), golden_op())
    save(path, golden_op())
    assert path.read_bytes() == GOLDEN.read_bytes()


@pytest.mark.parametrize(
    ("golden", "make"),
    [(GOLDEN_OBLIQUE, golden_oblique_op), (GOLDEN_EXACT, golden_exact_op), (GOLDEN_FACTORS, golden_factors_op)],
)
def test_golden_files_of_later_versions_still_load_and_are_still_written(path, golden, make):
    assert_equal_ops(load(golden), make())
    save(path, make())
    assert path.read_bytes() == golden.read_bytes()


@pytest.mark.parametrize(("chosen", "directions"), [(2, 0), (0, 3), (2, 3)])
def test_round_trip_with_an_exact_term(path, rng, op, chosen, directions):
    op = dataclasses.replace(op, term=random_term(rng, 7, 5, chosen, directions))
    save(path, op)
    assert_equal_ops(load(path), op)


@pytest.mark.parametrize("num_features", [7, None])
def test_round_trip_with_oblique_trees(path, rng, num_features):
    op = random_op(rng, 7, 3, 5, weights=True, make_trees=random_oblique_trees)
    op = dataclasses.replace(op, trees=dataclasses.replace(op.trees, num_features=num_features))
    save(path, op)
    assert_equal_ops(load(path), op)


def test_a_loaded_op_computes_the_same(path, rng, op):
    save(path, op)
    x = random_rows(rng, 9, 7)
    np.testing.assert_array_equal(amm(x, load(path)), amm(x, op))


def test_readable_with_numpy_alone(path, op):
    save(path, op)
    with np.load(path, allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["tables.values"], op.tables.values)
        assert json.loads(arrays["header.json"])["format"] == "jax_maddness.op"


def test_a_missing_file_is_a_missing_file(path):
    with pytest.raises(FileNotFoundError):
        load(path)


def test_a_failed_save_leaves_the_old_file(path, op):
    save(path, op)
    before = path.read_bytes()
    stacked = jax.tree.map(lambda a: jnp.stack([a, a]), op)
    with pytest.raises(ValueError, match="Save its elements"):
        save(path, stacked)
    with pytest.raises(TypeError, match="`op` is NoneType"):
        save(path, None)
    assert path.read_bytes() == before


@pytest.fixture(scope="module")
def damaged_path(tmp_path_factory):
    return tmp_path_factory.mktemp("damaged") / "layer.maddness"


@settings(max_examples=100, deadline=None)
@given(position=st.integers(0, GOLDEN.stat().st_size - 1), change=st.integers(0, 255))
def test_property_every_truncation_and_changed_byte_is_noticed(damaged_path, position, change):
    whole = GOLDEN.read_bytes()
    truncated = whole[:position]
    changed = whole[:position] + bytes([whole[position] ^ change]) + whole[position + 1 :]
    for damaged in (truncated, changed):
        damaged_path.write_bytes(damaged)
        try:
            op = load(damaged_path)
        except ValueError as error:
            assert "cannot be loaded as an op" in str(error)  # noqa: PT017 -- either outcome is right
        else:
            assert_equal_ops(op, golden_op())  # the byte was one that nobody reads, such as a date


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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 5}, "format version 5, this jax_maddness reads up to 4. Upgrade"),
        ({"version": "1"}, "its version is '1'"),
        ({"format": "other"}, "does not say 'jax_maddness.op'"),
        ({"num_features": 3}, r"a split index is not an int32 in \[0, 3\)"),
        ({"num_features": -1}, "num_features is -1"),
        ({"num_features": 11}, "op.weights"),
        ({"arrays": {}}, "it lists the arrays"),
        ({"arrays": None}, "it lists the arrays"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(path, changes, message):
    path.write_bytes(GOLDEN.read_bytes())
    changed_header(path, **changes)
    with pytest.raises(ValueError, match=message):
        load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"version": 1}, "it lists the arrays"), ({"num_features": 3}, "a split index"), ({"num_features": 11}, "center")],
)
def test_a_header_that_does_not_fit_oblique_trees_is_refused(path, changes, message):
    path.write_bytes(GOLDEN_OBLIQUE.read_bytes())
    changed_header(path, **changes)
    with pytest.raises(ValueError, match=message):
        load(path)


@pytest.mark.parametrize(
    ("left_out", "version", "message"),
    [
        (("exact.up",), 3, r"or with exact\.up, exact\.indices"),
        (("exact.down",), 3, r"`op.term.up` is float32\[5, 4\]; expected floating\[2, 4\]"),
        (("exact.indices", "exact.down"), 3, "neither `indices` nor `down`"),
        ((), 2, "it lists the arrays"),
    ],
)
def test_a_part_of_an_exact_term_is_refused(path, left_out, version, message):
    path.write_bytes(GOLDEN_EXACT.read_bytes())
    with zipfile.ZipFile(path) as archive:
        arrays = json.loads(archive.read("header.json"))["arrays"]
    rewritten(path, **{f"{name}.npy": None for name in left_out})
    changed_header(path, version=version, arrays={k: v for k, v in arrays.items() if k not in left_out})
    with pytest.raises(ValueError, match=message):
        load(path)


def test_an_exact_term_with_a_wild_index_is_not_saved(path):
    op = golden_exact_op()
    wild = dataclasses.replace(op.term, indices=jnp.array([0, 10], jnp.int32))
    with pytest.raises(ValueError, match=r"an exact term's index is not an int32 in \[0, 10\)"):
        save(path, dataclasses.replace(op, term=wild))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": jnp.full((3, 5), 10, jnp.int32)}, r"a split index is not an int32 in \[0, 10\)"),
        ({"projections": jnp.full((3, 4, 5), -128, jnp.int8)}, "an entry of trees.projections is -128"),
        ({"center": jnp.full(10, jnp.nan)}, "center is not finite"),
        ({"scale": jnp.full(10, -1.0)}, "scale is neither"),
        ({"scale": jnp.full(10, 2.0**-120)}, "scale is neither"),
        ({"scale": jnp.full(10, jnp.inf)}, "scale is neither"),
    ],
)
def test_oblique_trees_with_wild_contents_are_not_saved(path, change, message):
    op = golden_oblique_op()
    with pytest.raises(ValueError, match=message):
        save(path, dataclasses.replace(op, trees=dataclasses.replace(op.trees, **change)))
    assert not path.exists()


def test_changed_members_are_refused(path):
    for name, data, message in [
        ("tables.scale.npy", npy(np.zeros(4, np.float32)), "it was changed"),
        ("tables.scale.npy", npy(np.array([None])), "pickle"),
        ("tables.scale.npy", npy(np.zeros(4)), "stored as float64"),
        ("tables.scale.npy", b"", "cannot be loaded"),
        ("tables.scale.npy", None, "it has the members"),
        ("more.npy", npy(np.zeros(4)), "it has the members"),
        ("header.json", b"{", "cannot be loaded"),
        ("header.json", b"[" * 100_000, "cannot be loaded"),
        ("header.json", b" " * (1 << 21), "larger than"),
        ("header.json", None, "cannot be loaded"),
    ]:
        path.write_bytes(GOLDEN.read_bytes())
        rewritten(path, **{name: data})
        with pytest.raises(ValueError, match=message):
            load(path)


def stored_header(descr="<f4", shape="(4,)", order="False", version=b"\x01\x00"):
    text = f"{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    "header",
    [
        stored_header(shape="(999999999999999999, 999999999)"),
        stored_header(shape="(" * 5000 + "4" + ")" * 5000),
        stored_header(shape="(" + "9" * 900 + ",)"),
        stored_header(shape="(0, 9999999999999999999999)"),
        stored_header(shape="(4, None)"),
        stored_header(shape="(-4,)"),
        stored_header(shape='"(4,'),
        stored_header(shape="((4,))"),
        stored_header(descr=">f4"),
        stored_header(descr="<x4"),
        stored_header(descr="|O"),
        stored_header(order="True"),
        stored_header(version=b"\x03\x00"),
        stored_header()[:60],
        b"",
    ],
)
def test_a_crafted_array_is_one_error_and_allocates_nothing(path, header):
    path.write_bytes(GOLDEN.read_bytes())
    rewritten(path, **{"tables.scale.npy": header + bytes(16)})
    with pytest.raises(ValueError, match=r"layer\.maddness' cannot be loaded as an op: "):
        load(path)


@pytest.mark.parametrize(
    "header",
    [
        b'{"a":' * 60_000 + b"1" + b"}" * 60_000,
        b"[" * 500_000,
        b"9" * 10_000,
        b'"\xff"',
        b"NaN",
        b"null",
        json.dumps({"format": ["jax_maddness.op"]}).encode(),
        json.dumps({"format": "jax_maddness.op", "version": True}).encode(),
    ],
)
def test_a_crafted_header_is_one_error(path, header):
    path.write_bytes(GOLDEN.read_bytes())
    rewritten(path, **{"header.json": header})
    with pytest.raises(ValueError, match="cannot be loaded as an op"):
        load(path)


@pytest.mark.parametrize("arrays", [[], "arrays", {"trees.indices": 3}, {"trees.indices": {"dtype": ["f4"]}}])
@pytest.mark.parametrize("all_names", [False, True])
def test_a_crafted_description_of_arrays_is_one_error(path, arrays, all_names):
    path.write_bytes(GOLDEN.read_bytes())
    with zipfile.ZipFile(path) as archive:
        stated = json.loads(archive.read("header.json"))["arrays"]
    changed_header(path, arrays=stated | arrays if all_names and isinstance(arrays, dict) else arrays)
    with pytest.raises(ValueError, match="cannot be loaded as an op"):
        load(path)


@pytest.mark.parametrize("name", ["header.json", "tables.scale.npy"])
def test_a_deflated_member_that_lies_about_its_size_is_not_inflated(path, name):
    path.write_bytes(GOLDEN.read_bytes())
    with zipfile.ZipFile(path) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in members.items():
            bomb = member == name
            archive.writestr(member, bytes(1 << 24) if bomb else data, zipfile.ZIP_DEFLATED if bomb else None)
    path.write_bytes(path.read_bytes().replace((1 << 24).to_bytes(4, "little"), (100).to_bytes(4, "little")))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="is compressed; expected it stored"):
            load(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 22
    finally:
        tracemalloc.stop()


def test_a_member_that_is_larger_than_the_file_is_refused(path):
    with zipfile.ZipFile(GOLDEN) as archive:
        size = archive.getinfo("weights.npy").file_size
    path.write_bytes(GOLDEN.read_bytes().replace(size.to_bytes(4, "little"), (1 << 30).to_bytes(4, "little")))
    with pytest.raises(ValueError, match="members are larger than the file"):
        load(path)


@pytest.mark.parametrize("name", ["tables.scale", "tables.offset", "weights", "exact.up", "exact.down"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_neither_saved_nor_loaded(path, monkeypatch, name, value):
    op = golden_exact_op()
    field, _, inner = name.replace("exact.", "term.").partition(".")
    part = getattr(op, field)
    array = getattr(part, inner) if inner else part
    array = array.at[(0,) * array.ndim].set(value)
    wild = dataclasses.replace(op, **{field: dataclasses.replace(part, **{inner: array}) if inner else array})
    with pytest.raises(ValueError, match=f"an entry of {name} is not finite"):
        save(path, wild)
    with monkeypatch.context() as unchecked:
        unchecked.setattr(serialize, "_validate_values", lambda *_: None)
        save(path, wild)
    with pytest.raises(ValueError, match=f"cannot be loaded as an op: an entry of {name} is not finite"):
        load(path)


def test_a_file_of_another_kind_says_which_function_reads_it(path):
    for kind, reader in [("index", "load_index"), ("model", "load_model")]:
        path.write_bytes(GOLDEN.read_bytes())
        changed_header(path, format=f"jax_maddness.{kind}")
        with pytest.raises(ValueError, match=f"read it with `{reader}`"):
            load(path)
    with pytest.raises(ValueError, match=r"holds an op\. `jax_maddness\.load` reads it"):
        load_index(GOLDEN)


def test_arrays_that_do_not_fit_together_are_refused(path):
    path.write_bytes(GOLDEN.read_bytes())
    scale = np.zeros(9, np.float32)
    with zipfile.ZipFile(path) as archive:
        arrays = json.loads(archive.read("header.json"))["arrays"]
    rewritten(path, **{"tables.scale.npy": npy(scale)})
    changed_header(path, arrays=arrays | {"tables.scale": describe(scale)})
    with pytest.raises(ValueError, match=r"tables.scale"):
        load(path)


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
