"""Scanning a database of codes: the definition against loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_maddness.retrieval import scan


def by_hand(codes, tables, count, k):
    """[vectors, codebooks], [queries, codebooks, 16] -> sums and positions, as loops say."""
    sums = [[sum(int(t[c][code]) for c, code in enumerate(row)) for row in codes[:count]] for t in tables]
    best = [sorted(range(len(s)), key=lambda i: (-s[i], i))[:k] for s in sums]
    fill = [-1] * k
    return [[[s[i] for i in b] + fill][0][:k] for s, b in zip(sums, best, strict=True)], [(b + fill)[:k] for b in best]


@pytest.mark.parametrize("vectors", [0, 1, 63, 64, 65, 200])
@pytest.mark.parametrize("codebooks", [1, 2, 5])
def test_scan_is_what_loops_say(vectors, codebooks):
    rng = np.random.default_rng(vectors)
    codes = rng.integers(0, 16, (vectors, codebooks), np.uint8)
    tables = rng.integers(0, 4, (3, codebooks, 16), np.uint8)  # few values: many ties
    packed = scan.pack(jnp.asarray(codes))
    for count, k in [(vectors, 10), (vectors // 2, 100)]:
        sums, positions = jax.jit(scan.scan, static_argnums=3)(packed, tables, count, k)
        want = by_hand(codes, tables, count, k)
        np.testing.assert_array_equal(sums, want[0])
        np.testing.assert_array_equal(positions, want[1])


def test_unpack_undoes_pack():
    codes = np.random.default_rng(0).integers(0, 16, (130, 7), np.uint8)
    np.testing.assert_array_equal(scan.unpack(scan.pack(jnp.asarray(codes)))[:130, :7], codes)


def test_tables_that_do_not_belong_to_the_codes_are_refused():
    packed = scan.pack(jnp.zeros((3, 4), jnp.uint8))
    with pytest.raises(ValueError, match="pack"):
        scan.scan(packed, jnp.zeros((1, 6, 16), jnp.uint8), 3, 1)
    with pytest.raises(ValueError, match="256"):
        scan.scan(scan.pack(jnp.zeros((3, 300), jnp.uint8)), jnp.zeros((1, 300, 16), jnp.uint8), 3, 1)
