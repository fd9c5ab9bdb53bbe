"""Two processes with two devices each: ops and indexes spread over all of them answer as in one process."""

import jax
import numpy as np
import pytest
from helpers import one_of_two_servers
from helpers.ops import random_op, random_rows
from helpers.processes import run_two

from jax_maddness import aggregate, amm, build_index, encode, save, save_index, search, shard_index

ROWS, OUTPUTS, COUNT = 16, 8, 320
FLAGS = "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"


@pytest.mark.slow
def test_two_processes_answer_as_one(tmp_path, rng):
    op, x = random_op(rng, 8, 4, OUTPUTS), random_rows(rng, ROWS, 8)
    vectors, queries = (np.float32(rng.standard_normal((n, 8))) for n in (COUNT, 6))
    index = build_index(vectors, 4, metric="l2")
    save(tmp_path / "op", op)
    save_index(tmp_path / "index", index)
    np.savez(tmp_path / "problem.npz", x=x, queries=queries)
    run_two(one_of_two_servers.__file__, tmp_path, XLA_FLAGS=FLAGS)

    y, sums = np.asarray(amm(x, op)), np.asarray(aggregate(encode(x, op.trees), op.tables))
    sharded = shard_index(index, jax.make_mesh((4,), ("d",)), "d")
    found = search(queries, sharded, one_of_two_servers.K, num_candidates=one_of_two_servers.CANDIDATES)
    for rank in range(2):
        got = dict(np.load(tmp_path / f"{rank}.npz"))
        for kind in ("Auto", "Explicit"):
            np.testing.assert_array_equal(got[f"rows, {kind}"], np.split(y, 2)[rank])
            own = np.concatenate(np.split(y, 4, axis=1)[2 * rank : 2 * rank + 2])  # that of each device
            np.testing.assert_array_equal(got[f"outputs, {kind}"], own)
            np.testing.assert_array_equal(got[f"codebooks, gathered, {kind}"], np.concatenate([y, y]))
            np.testing.assert_array_equal(got[f"sums by codebooks, {kind}"], np.concatenate([sums, sums]))
            np.testing.assert_array_equal(got[f"scores, {kind}"], found[0])
            np.testing.assert_array_equal(got[f"ids, {kind}"], found[1])
        assert got["local"] == sharded.vectors.nbytes / 2
        assert [text.count("sharded over several processes") for text in got["errors"]] == [1, 1, 1]


def test_a_sharded_index_is_not_searched_inside_of_shard_map(rng):
    vectors = np.float32(rng.standard_normal((300, 8)))
    mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    index = build_index(vectors, 4)
    spread = jax.sharding.PartitionSpec("d")

    def on_shards(index):
        return jax.shard_map(lambda q: search(q, index, 3, num_candidates=300), mesh=mesh, in_specs=spread,
            out_specs=spread)(vectors[:8])  # fmt: skip

    with pytest.raises(ValueError, match=r"`index` is sharded .*outside of `jax.shard_map`, or pass an index"):
        on_shards(shard_index(index, mesh, "d"))
    np.testing.assert_array_equal(on_shards(index)[1], search(vectors[:8], index, 3, num_candidates=300)[1])
