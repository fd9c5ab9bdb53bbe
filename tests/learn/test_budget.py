"""`fit_budget`: the op is within the budget, and no smaller one that was tried is."""

import sys

import numpy as np
import pytest

from jax_maddness import FitConfig, evaluate, fit, fit_budget
from jax_maddness.learn import budget

FEATURES, OUTPUTS = 8, 4


@pytest.fixture
def data(rng):
    """x, w."""
    x = (rng.standard_normal((300, 3)) @ rng.standard_normal((3, FEATURES))).astype(np.float32)
    return x, rng.standard_normal((FEATURES, OUTPUTS)).astype(np.float32)


@pytest.mark.slow
def test_fewest_codebooks_that_reach_an_error(data):
    x, w = data
    found = fit_budget(x, w, max_nmse=0.2)
    by_codebooks = {t.codebooks: t for t in found.trace}
    chosen = by_codebooks[found.op.num_codebooks]
    assert chosen.nmse <= 0.2
    assert all(t.nmse > 0.2 for c, t in by_codebooks.items() if c < chosen.codebooks)
    assert evaluate(found.op, x, w).nmse < 0.2
    assert chosen.num_bytes == found.op.nbytes
    lines = str(found).splitlines()
    assert len(lines) == 2 + len(found.trace)
    assert sum(line.startswith(f"| **{found.op.num_codebooks}**") for line in lines) == 1


@pytest.mark.slow
@pytest.mark.parametrize("num_bytes", [172, 700])
def test_size_is_kept(data, num_bytes):
    found = fit_budget(*data, num_bytes=num_bytes)
    assert found.op.nbytes <= num_bytes
    assert found.op.num_codebooks == 1 or found.op.nbytes > num_bytes / 3


def test_time_is_kept(data, monkeypatch):
    x, _ = data
    monkeypatch.setattr(budget, "_seconds", lambda op, x: 1e-3 * op.num_codebooks)
    assert budget._most(x, OUTPUTS, FitConfig("paper"), None, 0.0061) == 6
    assert budget._most(x, OUTPUTS, FitConfig("paper"), None, 1.0) == FEATURES
    with pytest.raises(ValueError, match=r"one codebook takes 0.001 s on 300 rows"):
        fit_budget(*data, max_seconds=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["paper", "oblique"])
def test_stand_ins_are_as_large_as_what_is_learned(data, method):
    config = FitConfig(method)
    stand_in = budget._blank(FEATURES, 3, OUTPUTS, config)
    assert 0 < budget._seconds(stand_in, data[0]) < 1
    assert fit(*data, num_codebooks=3, config=config).nbytes == stand_in.nbytes
    limit = stand_in.nbytes + 1
    most = budget._most(data[0], OUTPUTS, config, limit, None)
    sizes = [budget._blank(FEATURES, c, OUTPUTS, config).nbytes for c in (most, most + 1)]
    assert sizes[0] <= limit < sizes[1]


def test_fewer_codebooks_where_more_do_not_help():
    def attempt(codebooks):
        return budget.Tried(codebooks, max(10 / codebooks, 1), 0, None)

    assert budget._most_useful(attempt, 64) == 16


def test_search_takes_few_attempts():
    tried = []

    def attempt(codebooks):
        tried.append(codebooks)
        return budget.Tried(codebooks, 10 / codebooks, 0, None)

    assert budget._fewest(attempt, 1000, 0.1) in range(100, 113)
    assert len(set(tried)) <= 12
    assert budget._fewest(attempt, 1000, 10) == 1


def test_the_trace_is_drawn(data, tmp_path):
    pytest.importorskip("matplotlib")
    tried = (budget.Tried(1, 0.5, 172, 1e-3), budget.Tried(2, 0.3, 272, None))
    for trace in (tried, tried[:1]):
        budget.BudgetReport(fit(*data, num_codebooks=1, config=FitConfig("paper")), trace).picture(
            tmp_path / "trace.png"
        )
        assert (tmp_path / "trace.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_needs_matplotlib(data, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="A picture needs matplotlib: `pip install matplotlib`"):
        budget.BudgetReport(None, ()).picture(tmp_path / "trace.png")


def test_errors_say_what_to_do(data):
    x, w = data
    with pytest.raises(ValueError, match=r"No budget is given. Pass `max_nmse`"):
        fit_budget(x, w)
    with pytest.raises(ValueError, match="`max_nmse` is 0; expected a positive number"):
        fit_budget(x, w, max_nmse=0)
    with pytest.raises(ValueError, match="one codebook takes 172"):
        fit_budget(x, w, num_bytes=100)
    with pytest.raises(ValueError, match=r"`max_nmse` is 1e-09, but the best within the limits is .* 1 codebooks"):
        fit_budget(x, w, max_nmse=1e-9, num_bytes=172)
    with pytest.raises(ValueError, match=r"`x_train` has one row"):
        fit_budget(x[:1], w, max_nmse=0.1)
