"""`load_index(mmap=True)`: the vectors stay in the file, and a search reads those of its candidates alone."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.golden import GOLDEN
from helpers.neighbours import assert_same, jitted

from jax_maddness import add_vectors, build_index, load_index, remove_vectors, save_index, search, search_within

FEATURES = 64


@pytest.fixture
def path(tmp_path):
    return tmp_path / "vectors.index"


def resident(path):
    """The number of bytes of a mapped file that are in the memory of this process."""
    total, is_file = 0, False
    for line in pathlib.Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0]:
            is_file = line.endswith(str(path))
        elif is_file and line.startswith("Rss:"):
            total += 1024 * int(line.split()[1])
    return total


@pytest.mark.parametrize(("metric_of", "dtype"), [("ip", jnp.float32), ("l2", jnp.bfloat16), ("cosine", jnp.float16)])
def test_the_results_are_those_of_an_index_in_memory(backend, path, indexes, listed, queries, metric_of, dtype):
    index = {"ip": listed, "l2": indexes, "cosine": indexes}[metric_of][metric_of]
    index = dataclasses.replace(index, vectors=index.vectors.astype(dtype))
    save_index(path, index)
    mapping = load_index(path, mmap=True)
    assert_same(mapping, load_index(path))
    for num_candidates in (20, index.count):
        one, other = (jitted(queries, i, 5, num_candidates=num_candidates) for i in (mapping, index))
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("metric_of", ["ip", "l2"])
def test_a_search_reads_the_candidates_alone(path, metric_of):
    """Other rows come with them: the kernel maps up to two megabytes around each."""
    rng, count = np.random.default_rng(0), 2**16
    small = build_index(np.float32(rng.standard_normal((64, FEATURES))), 2, metric=metric_of)
    large = dataclasses.replace(
        small,
        codes=rng.integers(0, 256, (count // 64, *small.codes.shape[1:])).astype(np.uint8),
        ids=np.arange(count, dtype=np.int32),
        vectors=np.tile(np.float32(rng.standard_normal((2**12, FEATURES))), (count // 2**12, 1)),
        capacity=count,
        recall=(),
    )
    save_index(path, large)
    index = load_index(path, mmap=True)
    size = index.vectors.nbytes
    assert resident(path) < size / 4
    ids = search(np.ones((1, FEATURES), np.float32), index, 1, num_candidates=2)[1]
    assert 0 <= ids[0, 0] < count
    assert resident(path) < size / 2
    float(jnp.abs(index.vectors).sum())
    assert resident(path) > 0.9 * size  # so that this is a measurement


def test_digests_of_what_stays_in_the_file_are_not_compared(path, indexes):
    save_index(path, indexes["ip"])
    data = bytearray(path.read_bytes())
    at = data.index(np.asarray(indexes["ip"].vectors).tobytes())
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="digest"):
        load_index(path)
    assert (load_index(path, mmap=True).vectors != indexes["ip"].vectors).sum() == 1
    path.write_bytes(data[: at + 1000])
    with pytest.raises(ValueError, match="cannot be loaded as an index"):
        load_index(path, mmap=True)


def test_files_of_earlier_versions_say_what_to_do(path):
    golden = GOLDEN.with_name("golden_v2.index")
    with pytest.raises(ValueError, match="Load the file without `mmap`, and save it again"):
        load_index(golden, mmap=True)
    save_index(path, load_index(golden))
    assert_same(load_index(path, mmap=True), load_index(golden))
    save_index(path, load_index(path, mmap=True))  # over itself
    assert_same(load_index(path, mmap=True), load_index(golden))


def test_what_else_takes_an_index_takes_it(path, indexes, queries):
    save_index(path, indexes["l2"])
    index = load_index(path, mmap=True)
    for change in (lambda i: add_vectors(i, queries), lambda i: remove_vectors(i, [3, 5])):
        assert_same(change(index), change(indexes["l2"]))
    one, other = (search_within(queries, i, max_distance=5.0) for i in (index, indexes["l2"]))
    assert_same(one, other)
    batched = jax.vmap(lambda q: search(q, index, 3))(queries[None])
    np.testing.assert_array_equal(batched[1][0], search(queries, index, 3)[1])


def test_an_index_without_vectors(path, indexes):
    save_index(path, dataclasses.replace(indexes["ip"], vectors=None))
    assert load_index(path, mmap=True).vectors is None
