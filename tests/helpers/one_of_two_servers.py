"""One of two processes that serve an op and an index together: `python one_of_two_servers.py RANK PORT FOLDER`.

Reads the problem from `FOLDER/problem.npz`, and writes results to `FOLDER/RANK.npz`; test_processes.py compares.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jax_maddness
from jax_maddness import LookupTables, MaddnessOp, aggregate, amm, encode

K, CANDIDATES = 5, 32


def on(mesh, array, *spec):
    """Puts an array that every process has on the devices of all of them."""
    array = np.asarray(array)
    return jax.make_array_from_callback(array.shape, NamedSharding(mesh, P(*spec)), lambda part: array[part])


def with_spec(op, place, **specs):
    """Places the arrays of `op`: those of tables as `specs` say, trees by `trees`, and all others as copies."""
    tables = {name: place(getattr(op.tables, name), *specs.get(name, ())) for name in ("values", "scale", "offset")}
    trees = jax.tree.map(lambda a: place(a, *specs.get("trees", ())), op.trees)
    return MaddnessOp(trees, LookupTables(**tables))


def sums_by_codebooks(mesh):
    """Returns the integer sums of an op whose codebooks are spread over `mesh`."""

    def sums(x, trees, values):
        tables = LookupTables(values, jnp.ones(len(values)), jnp.zeros(len(values)))
        return jax.lax.psum(aggregate(encode(x, trees), tables), "d")

    spread = jax.shard_map(sums, mesh=mesh, in_specs=(P(), P("d"), P(None, "d")), out_specs=P())
    return jax.jit(lambda x, op: spread(x, op.trees, op.tables.values))


def products(mesh, x, op):
    """Outputs of `amm`, and sums, with what is spread over the processes: this process's part of each."""

    def place(array, *spec):
        return on(mesh, array, *spec)

    whole = with_spec(op, place)
    by_output = with_spec(op, place, values=("d",), scale=("d",), offset=("d",))
    by_codebook = with_spec(op, place, values=(None, "d"), trees=("d",))
    results = {
        "rows": jax.jit(amm)(place(x, "d"), whole),
        "outputs": jax.jit(amm)(place(x), by_output),
        "codebooks, gathered": jax.jit(amm)(place(x), by_codebook),
        "sums by codebooks": sums_by_codebooks(mesh)(place(x), by_codebook),
    }
    return {name: np.concatenate([np.asarray(s.data) for s in y.addressable_shards]) for name, y in results.items()}


def errors(index):
    """Messages of what an index in several processes refuses."""
    for change in (
        lambda: jax_maddness.save_index("never", index),
        lambda: jax_maddness.add_vectors(index, np.ones((1, index.num_features))),
        lambda: jax_maddness.remove_vectors(index, [0]),
    ):
        try:
            change()
        except ValueError as error:
            yield str(error)


def main(rank, port, folder):
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=rank)
    problem = dict(np.load(folder / "problem.npz"))
    op = jax_maddness.load(folder / "op")
    results = {}
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((jax.device_count(),), ("d",), axis_types=(kind,))
        with jax.set_mesh(mesh):
            results |= {f"{name}, {kind.name}": y for name, y in products(mesh, problem["x"], op).items()}
            index = jax_maddness.shard_index(jax_maddness.load_index(folder / "index"), mesh, "d")
            scores, ids = jax_maddness.search(problem["queries"], index, K, num_candidates=CANDIDATES)
        results |= {f"scores, {kind.name}": np.asarray(scores), f"ids, {kind.name}": np.asarray(ids)}
    local = sum(shard.data.nbytes for shard in index.vectors.addressable_shards)
    np.savez(folder / f"{rank}.npz", **results, local=local, errors=list(errors(index)))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
