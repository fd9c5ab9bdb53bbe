"""One of two processes that have half of the rows each: `python one_of_two.py RANK PORT FOLDER`.

Writes what it has learned to `FOLDER/NAME.RANK`; learn/test_sharded.py compares.
"""

import dataclasses
import sys
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jax_maddness import CostModel, FitConfig, evaluate, fit, save
from jax_maddness.learn.data import rows as rows_file
from jax_maddness.learn.data import sharded

ROWS, FEW, CODEBOOKS, PAPER = 56, 50, 3, FitConfig("paper")
COSTS = CostModel("given", row=0, feature=0, output=0, tree=0, projection=0, look_up=1e-9, rounding=0, factor=1e-8,
    int8=1.0, exact=1e-8)  # fmt: skip


def problem():
    """Rows and weights; sums of the rows are exact in any order."""
    rng = np.random.default_rng(3)
    x = np.round(8 * rng.standard_normal((ROWS, 9))) / 8
    return x.astype(np.float32), rng.standard_normal((9, 5)).astype(np.float32)


def main(rank, port, folder):
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=rank)
    x, w = problem()
    sharding = NamedSharding(jax.make_mesh((jax.device_count(),), ("rows",)), PartitionSpec("rows"))
    x = jax.make_array_from_process_local_data(sharding, np.split(x, 2)[rank])
    assert x.shape == (ROWS, 9)
    assert not x.is_fully_addressable
    assert sharded.from_first(["first", "another"][rank], x) == "first"

    op = fit(x, w, num_codebooks=CODEBOOKS, config=PAPER, progress=False)
    save(folder / f"all.{rank}", op)
    (folder / f"nmse.{rank}").write_text(str(evaluate(op, x, w).nmse))
    quick = dataclasses.replace(COSTS, int8=[1.0, 0.0][rank])  # only the second process would take int8
    save(folder / f"chosen.{rank}", fit(x, w, config=PAPER, costs=quick, progress=False))
    rows_file.RESERVOIR = FEW
    save(folder / f"few.{rank}", fit(x, w, num_codebooks=CODEBOOKS, config=PAPER, progress=False))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
