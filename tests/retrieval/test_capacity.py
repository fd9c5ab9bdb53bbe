"""Indexes with room: the same searches as without, in the same programs, whatever comes and goes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.neighbours import CODEBOOKS, FEATURES, assert_same, clustered
from helpers.programs import count_compilations
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import export

from jax_maddness import (
    add_vectors,
    build_index,
    disabled_export_checks,
    load_index,
    measure_recall,
    remove_vectors,
    sample,
    save_index,
    search,
    search_within,
    shard_index,
    top_k,
    with_capacity,
)
from jax_maddness.retrieval.index import METRICS
from jax_maddness.retrieval.room import REMOVED

COUNT, CAPACITY = 90, 150
KINDS = (*METRICS, "biased")
VECTORS, BIAS = clustered(3, COUNT), np.linspace(-1, 1, COUNT, dtype=np.float32)
FIRST = {3 * i: (vector, bias) for i, (vector, bias) in enumerate(zip(VECTORS, BIAS, strict=True))}


@pytest.fixture(scope="module")
def queries():
    return clustered(4, 6)


@pytest.fixture(scope="module")
def indexes():
    """Indexes of what `FIRST` has, without room."""
    made = {metric: build_index(VECTORS, CODEBOOKS, metric=metric, ids=list(FIRST)) for metric in METRICS}
    made["biased"] = build_index(VECTORS, CODEBOOKS, bias=BIAS, keep_vectors=np.float16, ids=list(FIRST))
    return made


def added(index, ids, rng, **options):
    """The index with random vectors, and what there is of each of these."""
    rows, bias = clustered(int(rng.integers(1 << 30)), len(ids)), rng.standard_normal(len(ids)).astype(np.float32)
    own = {} if index.bias is None else {"bias": bias}
    follow = options.pop("follow", False)
    index = add_vectors(index, rows, None if follow else ids, **own, **options)
    return index, dict(zip(np.asarray(ids).tolist(), zip(rows, bias, strict=True), strict=True))


def changed(index, rng, steps, donate):
    """The index after random changes, as many vectors as before, and what there is of each of them, by id."""
    now = dict(FIRST)
    for _ in range(steps):
        kind, number = rng.choice(["follow", "anywhere", "again", "remove"]), int(rng.integers(1, 12))
        free = sorted((set(FIRST) if kind == "again" else set(range(3 * COUNT))) - set(now))
        if kind == "remove":
            index = remove_vectors(index, gone := rng.choice(sorted(now), number, replace=False), donate=donate)
            now = {i: now[i] for i in now if i not in gone}
        elif kind == "follow" or len(free) < number:
            index, new = added(index, max(now) + 1 + np.arange(number), rng, donate=donate, follow=True)
            now |= new
        else:
            index, new = added(index, rng.choice(free, number, replace=False), rng, donate=donate)
            now |= new
    if len(now) > COUNT:
        index = remove_vectors(index, gone := sorted(now)[COUNT // 2 : COUNT // 2 + len(now) - COUNT], donate=donate)
        now = {i: now[i] for i in now if i not in gone}
    if len(now) < COUNT:
        index, new = added(index, max(now) + 1 + np.arange(COUNT - len(now)), rng, donate=donate)
        now |= new
    return index, now


def rebuilt(index, now):
    """The same of an index without room, by at most two changes."""
    new = {i: own for i, own in now.items() if own is not FIRST.get(i)}
    index = remove_vectors(index, [i for i, own in FIRST.items() if now.get(i) is not own])
    if not new:
        return index
    rows, bias = map(np.stack, zip(*new.values(), strict=True))
    return add_vectors(index, rows, list(new), **({} if index.bias is None else {"bias": bias}))


@settings(max_examples=25, deadline=None, derandomize=True)  # codes of nearly equal errors depend on the batch
@given(st.sampled_from(KINDS), st.integers(0, 2**30), st.booleans())
def test_after_any_changes_it_is_the_index_without_room(indexes, kind, seed, donate):
    first = with_capacity(indexes[kind], CAPACITY)
    index, now = changed(first, np.random.default_rng(seed), 10, donate)
    assert index.count == COUNT == len(now)
    assert_same(with_capacity(index, None), rebuilt(indexes[kind], now))
    if not donate:
        assert_same(with_capacity(first, None), indexes[kind])


def restrictions(rng, roomy, plain):
    """Pairs of keywords of a search, for the index with room and for that without."""
    ids, always = rng.choice(plain.ids, 9), rng.choice(plain.ids, (6, 3))
    mask, scores = rng.random((6, 1000)) < 0.6, 30 * rng.standard_normal((6, 1000)).astype(np.float32)
    yield {}, {}
    yield ({"exclude": np.append(ids, [-1, 5000])},) * 2
    yield ({"always": always, "exclude": ids},) * 2
    yield tuple({"exclude": mask[:, index.ids]} for index in (roomy, plain))
    if plain.metric == "ip":
        yield tuple({"score_bias": scores[:, index.ids]} for index in (roomy, plain))


def with_some_removed(index, rng):
    """The index with room after changes, five of whose vectors keep their places, and the same without room."""
    roomy = with_capacity(changed(with_capacity(index, CAPACITY), rng, 8, True)[0], CAPACITY)
    roomy = remove_vectors(roomy, roomy.ids[10:15], donate=True)
    assert roomy.count == COUNT - 5
    return roomy, with_capacity(roomy, None)


def assert_equal(got, want):
    """Ids are the same, and scores up to the order of additions."""
    np.testing.assert_array_equal(got[1], want[1])
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_candidates", [0, 7, COUNT, 200])
def test_searches_are_those_without_room(indexes, queries, kind, num_candidates, rng):
    """Also where all vectors are candidates, but not all positions."""
    roomy, plain = with_some_removed(indexes[kind], rng)
    for own, want in restrictions(rng, roomy, plain):
        if num_candidates or "always" not in own:
            got = search(queries, roomy, 5, num_candidates=num_candidates, **own)
            assert_equal(got, search(queries, plain, 5, num_candidates=num_candidates, **want))


def test_outputs_samples_and_log_sums_are_those_without_room(indexes, queries, rng):
    roomy, plain = with_some_removed(indexes["biased"], rng)
    for num_candidates in (20, CAPACITY):
        got, want = (top_k(queries, i, k=5, num_candidates=num_candidates, log_sum=True) for i in (roomy, plain))
        assert_equal(got, want)
        np.testing.assert_allclose(got[2].value, want[2].value, atol=1e-3 if num_candidates == CAPACITY else 0.5)
    drawn = sample(jax.random.key(0), np.tile(queries, (50, 1)), roomy, temperature=50.0, num_candidates=CAPACITY)
    assert np.isin(drawn, plain.ids).all()


def test_ranges_and_measured_recall_are_those_without_room(indexes, queries, rng):
    roomy, plain = with_some_removed(indexes["l2"], rng)
    for num_candidates, mask in ((8, None), (COUNT, rng.random(1000) < 0.3)):
        got, want = (
            search_within(
                queries,
                index,
                max_distance=8.0,
                num_candidates=num_candidates,
                exclude=None if mask is None else mask[index.ids],
            )
            for index in (roomy, plain)
        )
        assert len(want[2]) > len(queries)
        np.testing.assert_array_equal(got[0], want[0])
        assert_equal(got[1:], want[1:])
    shares = [measure_recall(queries, index, 5, num_candidates=9) for index in (roomy, plain)]
    assert shares[0] == shares[1]


def test_fewer_than_k_vectors_and_none(indexes, queries):
    index = remove_vectors(with_capacity(indexes["l2"], CAPACITY), list(FIRST)[:-2], donate=True)
    for num_candidates in (0, 5, CAPACITY):
        scores, ids = search(queries, index, 4 if num_candidates else 3, num_candidates=num_candidates)
        assert (np.sort(ids, -1)[:, -2:] == list(FIRST)[-2:]).all()
        assert (np.asarray(ids)[:, 2:] == -1).all()
        assert (np.asarray(scores)[:, 2:] == -np.inf).all()
    empty = remove_vectors(index, list(FIRST)[-2:], donate=True)
    assert empty.count == 0
    assert (np.asarray(search(queries, empty, 3)[1]) == -1).all()
    again = add_vectors(empty, VECTORS, list(FIRST))
    assert_same(with_capacity(again, None), indexes["l2"])


def test_jit_vmap_and_export_agree(indexes, queries, rng):
    roomy, _ = with_some_removed(indexes["ip"], rng)
    run = lambda queries, index: search(queries, index, 3, num_candidates=9)  # noqa: E731
    want = run(queries, roomy)
    assert_equal(jax.jit(run)(queries, roomy), want)
    assert_equal(jax.vmap(run, (0, None))(queries, roomy), want)
    both = jax.tree.map(lambda *a: jnp.stack(a), roomy, with_capacity(indexes["ip"], CAPACITY))
    assert both.count.tolist() == [COUNT - 5, COUNT]
    assert_equal([a[0] for a in jax.vmap(run, (None, 0))(queries, both)], want)
    exported = export.export(jax.jit(run), disabled_checks=disabled_export_checks())(queries, roomy)
    assert_equal(export.deserialize(exported.serialize()).call(queries, roomy), want)


def test_nothing_is_compiled_while_vectors_come_and_go(indexes, queries):
    find = jax.jit(lambda queries, index: search(queries, index, 3, num_candidates=9))
    index = with_capacity(indexes["l2"], 400)
    for first in (3, 9, 15, 21):
        with count_compilations() as names:
            index = add_vectors(index, clustered(first, 3), donate=True)  # ids follow
            find(queries, index)
            index = remove_vectors(index, [3 * first, 3 * first + 3], donate=True)
            find(queries, index)
            index = add_vectors(index, clustered(first, 2), [3 * first + 3, 500 + first], donate=True)  # again, follows
            index = remove_vectors(index, [500 + first], donate=True)  # the last
            find(queries, index)
            index = add_vectors(index, clustered(first, 1), [first + 1])  # between others, copied
            more = remove_vectors(index, list(FIRST)[-REMOVED:])  # more than keep their places
            find(queries, more)
        assert not names or first == 3
    assert find._cache_size() == 1
    assert index.count == COUNT + 4 * 3
    assert more.count == index.count - REMOVED


def test_capacity_doubles_and_places_of_removed_vectors_are_used_again(indexes):
    index = with_capacity(indexes["ip"], COUNT)
    assert add_vectors(index, VECTORS[:1]).capacity == 2 * COUNT
    assert add_vectors(index, np.tile(VECTORS, (4, 1))).capacity == 8 * COUNT
    index = add_vectors(remove_vectors(index, [0, 30]), VECTORS[:2])
    assert (index.capacity, index.count) == (COUNT, COUNT)
    many = remove_vectors(with_capacity(indexes["ip"], CAPACITY), list(FIRST)[:REMOVED])
    assert len(many.room.on_host()[1]) == REMOVED
    fewer = remove_vectors(many, list(FIRST)[REMOVED : REMOVED + 1])
    assert (fewer.capacity, fewer.count, len(fewer.room.on_host()[1])) == (CAPACITY, COUNT - REMOVED - 1, 0)
    assert_same(with_capacity(fewer, None), remove_vectors(indexes["ip"], list(FIRST)[: REMOVED + 1]))


def test_what_is_donated_is_gone_and_what_is_not_stays(indexes):
    first = with_capacity(indexes["ip"], CAPACITY)
    host = np.asarray(first.vectors).copy()
    add_vectors(first, VECTORS[:1])
    remove_vectors(first, [0, 3 * COUNT - 3])
    np.testing.assert_array_equal(with_capacity(first, None).vectors, VECTORS)
    second = with_capacity(first, CAPACITY)
    add_vectors(second, VECTORS[:1], donate=True)
    assert second.vectors.is_deleted()
    np.testing.assert_array_equal(first.vectors, host)
    assert_same(with_capacity(first, None), indexes["ip"])


@pytest.mark.parametrize("change", ["remove_vectors", "add_vectors"])
def test_an_index_that_was_donated_is_refused_in_clear_words(indexes, queries, change):
    index = with_capacity(indexes["ip"], CAPACITY)
    if change == "add_vectors":
        add_vectors(index, queries[:1], donate=True)
    else:
        remove_vectors(index, [3], donate=True)  # not the last one, so that no id changes
    uses = [
        lambda: search(queries, index),
        lambda: top_k(queries, index, k=1),
        lambda: search_within(queries, index, min_score=0.0),
        lambda: measure_recall(queries, index),
        lambda: add_vectors(index, queries[:1]),
        lambda: remove_vectors(index, [0]),
        lambda: with_capacity(index, None),
    ]
    for use in uses:
        with pytest.raises(ValueError, match="`index` was donated"):
            use()


@pytest.mark.parametrize("has_room", [False, True])
@pytest.mark.parametrize("recall", [0.8, 1.0])
def test_a_recall_is_kept_when_an_index_grows(has_room, recall, tmp_path):
    """As many candidates as among few vectors would find less among many; of files, too."""
    rng = np.random.default_rng(0)
    vectors, queries = rng.standard_normal((3000, 8)).astype(np.float32), rng.standard_normal((100, 8))
    index = build_index(vectors[:200], 4, metric="l2")
    grown = add_vectors(with_capacity(index, 3000) if has_room else index, vectors[200:])
    assert measure_recall(queries, grown, recall=recall)[0] >= recall
    save_index(tmp_path / "grown.index", grown)
    loaded = load_index(tmp_path / "grown.index")
    assert (loaded.measured, loaded.recall) == (200, index.recall)
    assert measure_recall(queries, loaded, recall=recall)[0] >= recall
    smaller = with_capacity(remove_vectors(grown, np.arange(200, 3000)), None)
    assert smaller.measured == 0
    own, before = (search(np.float32(queries[:3]), one, 5, recall=recall)[1] for one in (smaller, index))
    np.testing.assert_array_equal(own, before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_number(kind):
    """One vector of one feature, and one more: with older NumPys an array of one number easily becomes a scalar."""
    bias, metric = ([0.5], "ip") if kind == "biased" else (None, kind)
    index = build_index(np.float32([[2.0]]), 1, metric=metric, bias=bias)
    for grown in (with_capacity(index, 4), index):
        grown = add_vectors(grown, np.float32([[3.0]]), bias=bias)
        np.testing.assert_array_equal(search(np.float32([[3.0]]), grown, 1)[1], [[0 if kind == "cosine" else 1]])
        assert measure_recall(np.float32([[3.0]]), grown, 1)[0] == 1.0


def test_more_neighbours_than_vectors_may_be_asked_for_with_a_recall(indexes, queries):
    index = with_capacity(indexes["ip"], CAPACITY)
    wide = search(queries, index, COUNT + 10, recall=0.5)[1]
    np.testing.assert_array_equal(wide[:, COUNT:], -1)


def test_files_and_shards_have_no_room(indexes, tmp_path, rng):
    roomy, plain = with_some_removed(indexes["l2"], rng)
    save_index(tmp_path / "with", roomy)
    save_index(tmp_path / "without", plain)
    assert (tmp_path / "with").read_bytes() == (tmp_path / "without").read_bytes()
    assert_same(load_index(tmp_path / "with"), plain)
    in_file = with_capacity(load_index(tmp_path / "with", mmap=True), CAPACITY)
    in_file = remove_vectors(add_vectors(in_file, VECTORS[:1], [9999], donate=True), [9999], donate=True)
    assert_same(with_capacity(in_file, None), plain)
    mesh = jax.make_mesh((4,), ("v",))
    assert_same(shard_index(roomy, mesh, "v"), shard_index(plain, mesh, "v"))
    assert with_capacity(shard_index(plain, mesh, "v"), CAPACITY).count == plain.count


def test_reprs_tell_what_is_known(indexes):
    index = with_capacity(indexes["ip"], CAPACITY)
    assert repr(index).startswith(f"VectorIndex({COUNT} x {FEATURES}, room for {CAPACITY}, ip")
    shapes = jax.eval_shape(lambda index: index, index)
    assert repr(shapes).startswith(f"VectorIndex(x {FEATURES}, room for {CAPACITY}, ip")
    seen = []
    jax.jit(lambda index: seen.append((repr(index), index.count)))(index)
    assert seen[0][0].startswith(f"VectorIndex(x {FEATURES}, room")
    assert isinstance(seen[0][1], jax.core.Tracer)


def test_vectors_that_trees_encode(queries):
    index = build_index(VECTORS, CODEBOOKS, method="trees")
    roomy = add_vectors(with_capacity(index, CAPACITY), queries)
    assert roomy.room.gram is None
    assert_same(with_capacity(roomy, None), add_vectors(index, queries))


def test_what_is_refused(indexes, listed, queries):
    index = with_capacity(indexes["ip"], CAPACITY)
    with pytest.raises(ValueError, match=r"`capacity` is 89, but `index` has 90 vectors"):
        with_capacity(indexes["ip"], COUNT - 1)
    with pytest.raises(ValueError, match="`capacity` is 0"):
        with_capacity(indexes["ip"], 0)
    with pytest.raises(ValueError, match="`index` has lists"):
        with_capacity(listed["ip"], 1000)
    with pytest.raises(TypeError, match="traced"):
        jax.jit(lambda index: with_capacity(index, CAPACITY).ids)(index)
    removed = remove_vectors(index, [3])
    for ids in ([3], [2**32 + 6], [-1], [1]):
        with pytest.raises(ValueError, match="not in `index`"):
            remove_vectors(removed, ids)
    with pytest.raises(ValueError, match="there already, such as 6"):
        add_vectors(removed, VECTORS[:2], [3, 6])
    with pytest.raises(ValueError, match="`exclude` has shape"):
        search(queries, index, 3, exclude=np.zeros(COUNT, bool))
    with pytest.raises(ValueError, match=f"`index` has {CAPACITY} outputs"):
        top_k(queries, index, k=CAPACITY + 1)
