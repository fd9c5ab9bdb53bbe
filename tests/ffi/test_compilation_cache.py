"""JAX's persistent compilation cache keeps functions that call the kernels: a second process compiles nothing."""

import json
import os
import subprocess
import sys

import pytest
from helpers.ops import needs_kernels, random_op

import jax_maddness

COMPILE = """
import collections, json, sys
import jax, numpy as np
from jax.sharding import AxisType, PartitionSpec as P
from jax_maddness import amm, load, load_index, search, shard_index

folder, misses, counts = sys.argv[1], {}, collections.Counter()
op, index, x = load(folder + "/op"), load_index(folder + "/index"), np.ones((16, 8), np.float32)
jax.monitoring.register_event_listener(lambda event, **_: counts.update([event]))

def compile(name, function, *args):
    jax.jit(function).lower(*args).compile()
    misses[name] = counts["/jax/compilation_cache/cache_misses"]
    counts.clear()

def found(queries, index):
    return search(queries, index, 3, num_candidates=16)

compile("amm", amm, x, op)
compile("search", found, x, index)
for kind in AxisType.Auto, AxisType.Explicit:
    mesh = jax.make_mesh((4,), ("d",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        rows = jax.device_put(x, P("d"))
        compile(f"amm, {kind.name}", amm, rows, op)
        compile(f"search, {kind.name}", found, x, shard_index(index, mesh, "d"))
        compile(f"amm in shard_map, {kind.name}",
            jax.shard_map(amm, mesh=mesh, in_specs=(P("d"), P()), out_specs=P("d")), rows, op)
        jax.config.update("jax_remove_custom_partitioning_ptr_from_cache_key", True)
        compile(f"amm without the pointer, {kind.name}", lambda x, op: amm(x, op), rows, op)
        jax.config.update("jax_remove_custom_partitioning_ptr_from_cache_key", False)
print(json.dumps(misses))
"""


@needs_kernels
@pytest.mark.slow
def test_a_second_process_compiles_nothing(rng, tmp_path):
    """Except `amm` over Auto axes, unless the address of the function that partitions it is left out of the key."""
    jax_maddness.save(tmp_path / "op", random_op(rng, 8, 3, 8))
    jax_maddness.save_index(tmp_path / "index", jax_maddness.build_index(rng.standard_normal((300, 8)), 4))
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    first, second = (
        json.loads(subprocess.check_output([sys.executable, "-c", COMPILE, tmp_path], env=environment, text=True))
        for _ in range(2)
    )
    assert all(first.values())
    assert [name for name, misses in second.items() if misses] in ([], ["amm, Auto"])
    assert len(second) == 10
