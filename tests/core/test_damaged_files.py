"""load: whatever happened to a file, one clear error, and no memory that its header asks for."""

import dataclasses
import json
import tracemalloc
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.golden import (
    GOLDEN,
    GOLDEN_EXACT,
    GOLDEN_OBLIQUE,
    assert_equal_ops,
    changed_header,
    golden_exact_op,
    golden_oblique_op,
    golden_op,
    npy,
    rewritten,
)
from helpers.ops import random_op
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_maddness import load, load_index, save
from jax_maddness.core import serialize
from jax_maddness.core.archive import describe


@pytest.fixture
def path(tmp_path):
    return tmp_path / "layer.maddness"


@pytest.fixture
def op(rng):
    return random_op(rng, 7, 3, 5, weights=True)


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
