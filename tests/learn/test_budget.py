"""`fit_budget`: the op is within the budget, and no smaller one that was tried is."""

import sys

import numpy as np
import pytest

from jax_maddness import FitConfig, evaluate, fit, fit_budget
from jax_maddness.learn import budget, sizes

FEATURES, OUTPUTS = 8, 4


@pytest.fixture
def data(rng):
    """x, w."""
    x = (rng.standard_normal((300, 3)) @ rng.standard_normal((3, FEATURES))).astype(np.float32)
    return x, rng.standard_normal((FEATURES, OUTPUTS)).astype(np.float32)


CODES = ["codes"]


@pytest.mark.slow
def test_fewest_codebooks_that_reach_an_error(data):
    x, w = data
    found = fit_budget(x, w, max_nmse=0.2, products=CODES)
    assert found.chosen.nmse <= 0.2
    assert all(t.nmse > 0.2 for t in found.trace if t.codebooks < found.chosen.codebooks)
    assert evaluate(found.op, x, w).nmse < 0.2
    assert found.chosen.num_bytes == found.op.nbytes
    lines = str(found).splitlines()
    assert len(lines) == 2 + len(found.trace)
    assert sum(line.startswith(f"| **codes** | {found.op.num_codebooks} |") for line in lines) == 1


def test_the_quickest_product_that_reaches_an_error(data, monkeypatch):
    """Rows of three dimensions: four directions reach any error, and times decide between them and int8."""
    monkeypatch.setattr(budget, "seconds_of", lambda op, x: 1e-3 * (1 + len(op.term.up)))
    found = fit_budget(*data, max_nmse=1e-2, products=["int8", "factors"])
    assert (found.chosen.product, found.op.num_codebooks, found.op.term.rank) == ("factors", 0, 4)
    assert {t.product for t in found.trace} == {"int8", "factors"}
    monkeypatch.setattr(budget, "seconds_of", lambda op, x: 1e-3 / (1 + len(op.term.up)))
    assert fit_budget(*data, max_nmse=1e-2, products=["int8", "factors"]).chosen.product == "int8"


@pytest.mark.slow
def test_without_an_error_the_closest_product_within_the_limits(data):
    found = fit_budget(*data, num_bytes=1000, products=["codes", "factors", "codes and factors", "int8"])
    assert found.chosen.nmse == min(t.nmse for t in found.trace)
    assert found.op.nbytes <= 1000
    assert evaluate(found.op, *data).nmse < 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("num_bytes", [172, 700])
def test_size_is_kept(data, num_bytes):
    found = fit_budget(*data, num_bytes=num_bytes, products=CODES)
    assert found.op.nbytes <= num_bytes
    assert found.op.num_codebooks == 1 or found.op.nbytes > num_bytes / 3


def test_time_is_kept(data, monkeypatch):
    x, _ = data
    codes = sizes.products_of(FEATURES, OUTPUTS, FitConfig("paper"))["codes"]
    monkeypatch.setattr(sizes, "seconds_of", lambda op, x: 1e-3 * op.num_codebooks)
    assert sizes.largest_within(codes, x, OUTPUTS, None, 0.0061) == 6
    assert sizes.largest_within(codes, x, OUTPUTS, None, 1.0) == FEATURES
    with pytest.raises(ValueError, match=r"one codebook takes 0.001 s on 300 rows"):
        fit_budget(*data, max_seconds=1e-4, products=CODES)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["paper", "oblique"])
@pytest.mark.parametrize("product", ["codes", "factors", "codes and factors", "int8"])
def test_placeholders_are_as_large_as_what_is_learned(data, method, product):
    if method == "oblique" and product in ("factors", "int8"):
        return  # they have no trees
    kind = sizes.products_of(FEATURES, OUTPUTS, FitConfig(method, steps=50))[product]
    codebooks, config = kind.options(1)
    stand_in = sizes.placeholder(FEATURES, OUTPUTS, codebooks, config)
    assert 0 < sizes.seconds_of(stand_in, data[0]) < 1
    assert fit(*data, num_codebooks=codebooks, config=config).nbytes == stand_in.nbytes
    limit = stand_in.nbytes + 1
    most = sizes.largest_within(kind, data[0], OUTPUTS, limit, None)
    assert most == 1
    if kind.largest > 1:
        assert sizes.placeholder(FEATURES, OUTPUTS, *kind.options(2)).nbytes > limit


def tried(size, nmse):
    return sizes.Tried("codes", size, 0, nmse, 0, None)


def test_smaller_sizes_where_larger_do_not_help():
    assert sizes.most_useful(lambda size: tried(size, max(10 / size, 1)), 64) == 16
    assert sizes.most_useful(lambda size: tried(size, size), 64) == 1


def test_search_takes_few_attempts():
    sizes_tried = []

    def attempt(size):
        sizes_tried.append(size)
        return tried(size, 10 / size)

    assert sizes.smallest(attempt, 1000, 0.1) in range(100, 113)
    assert len(set(sizes_tried)) <= 12
    assert sizes.smallest(attempt, 1000, 10) == 1
    assert sizes.smallest(attempt, 10, 0.1) is None


def test_the_trace_is_drawn(data, tmp_path):
    pytest.importorskip("matplotlib")
    op = fit(*data, num_codebooks=0, config=FitConfig(rank=4))
    trace = (sizes.Tried("codes", 1, 0, 0.5, 172, 1e-3), sizes.Tried("factors", 0, 4, 0.3, 272, None))
    for some in (trace, trace[:1]):
        budget.BudgetReport(op, some, some[0]).picture(tmp_path / "trace.png")
        assert (tmp_path / "trace.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_needs_matplotlib(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="A picture needs matplotlib: `pip install matplotlib`"):
        budget.BudgetReport(None, (), None).picture(tmp_path / "trace.png")


def test_rows_that_int8_does_not_take_are_left_to_codes(data):
    x, w = data
    found = fit_budget(x * np.float32(1e-30), w, num_bytes=700)
    assert {t.product for t in found.trace} == {"codes"}
    with pytest.raises(ValueError, match="int8 factors take rows that vary by"):
        fit_budget(x * np.float32(1e-30), w, num_bytes=700, products=["factors"])


def test_errors_say_what_to_do(data):
    x, w = data
    with pytest.raises(ValueError, match=r"No budget is given. Pass `max_nmse`"):
        fit_budget(x, w)
    with pytest.raises(ValueError, match="`max_nmse` is 0; expected a positive number"):
        fit_budget(x, w, max_nmse=0)
    with pytest.raises(ValueError, match="one codebook takes 172"):
        fit_budget(x, w, num_bytes=100, products=CODES)
    with pytest.raises(ValueError, match=r"the best within the limits is .*, by codes with 1 codebooks and rank 0"):
        fit_budget(x, w, max_nmse=1e-9, num_bytes=172, products=CODES)
    for bad in ("codes", [], ["code"], [["codes"]], 5, None):
        with pytest.raises(ValueError, match=r"`products` is .*; expected a list of some of: 'factors', 'int8'"):
            fit_budget(x, w, num_bytes=700, products=bad)
    with pytest.raises(ValueError, match=r"`x_train` has one row"):
        fit_budget(x[:1], w, max_nmse=0.1)
