"""The benchmark of the paper's classifiers on tiny shapes: what it times is right, its table and picture come out."""

import jax.numpy as jnp
import numpy as np

from benchmarks import paper
from jax_maddness import FitConfig, amm, fit


def test_a_run_prints_the_table_and_draws_it(monkeypatch, capsys, tmp_path):
    for name, value in {"ROWS": 200, "FEATURES": 16, "OUTPUTS": (3, 5), "CODEBOOKS": (2, 4)}.items():
        monkeypatch.setattr(paper, name, value)
    monkeypatch.setattr(paper.jax_maddness, "retain_freed_memory", lambda: True)
    paper.main(["--seconds", "0.1", "--output", str(tmp_path / "picture.png")])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(lines) == 1 + 2 * 2
    assert all(line.count("|") == 9 and line.count("x)") == 3 for line in lines[1:])
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_all_orders_are_the_same_product(rng):
    x = rng.standard_normal((50, 16)).astype(np.float32)
    op = fit(x, np.ones((16, 3)), num_codebooks=2, config=FitConfig("paper"))
    y = amm(jnp.asarray(x), op)
    np.testing.assert_array_equal(paper.by_feature(jnp.asarray(x.T), op), y)
    np.testing.assert_array_equal(paper.both_by_feature(jnp.asarray(x.T), op), y.T)
