"""Every cell of docs/transformations.md is a test: a transformation of JAX, a public function, a backend."""

import inspect
import re

import jax
import numpy as np
import pytest
from helpers.ops import needs_kernels
from helpers.transformations.cases import FUNCTIONS
from helpers.transformations.page import PAGE, page
from helpers.transformations.table import NOTES, TRANSFORMATIONS, notes_of
from jax import export

import jax_maddness
from jax_maddness import amm_with_exact_rows, disabled_export_checks, max_over_positions, testing

BACKENDS = [
    pytest.param("ffi", marks=needs_kernels, id="kernels"),
    pytest.param("jax", marks=pytest.mark.slow, id="jax"),
]
CELLS = [(row, name) for row in TRANSFORMATIONS for name in FUNCTIONS if all(n.applies for n in notes_of(row, name))]


@pytest.mark.filterwarnings("ignore:Some donated buffers were not usable")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("transformation", "function"), CELLS)
def test_cell(transformation, function, backend):
    check = TRANSFORMATIONS[transformation].check
    message = next((note.raises for note in notes_of(transformation, function) if note.raises), None)
    with testing.force_backend(backend):
        if message is None:
            check(FUNCTIONS[function])
            return
        with pytest.raises(Exception, match=message):
            check(FUNCTIONS[function])


def test_the_page_is_made_from_the_table():
    assert PAGE.read_text() == page(), "run `PYTHONPATH=tests python -m helpers.transformations.page`"


def test_notes_are_about_cells():
    for note in NOTES:
        assert set(note.rows) <= set(TRANSFORMATIONS)
        assert set(note.functions) <= set(FUNCTIONS)


def test_every_public_function_is_on_the_page():
    names = {name for name in jax_maddness.__all__ if inspect.isfunction(getattr(jax_maddness, name))}
    assert names <= set(re.findall(r"`(\w+)`", page()))


def test_a_symbolic_number_of_rows_needs_a_bound():
    """The remedy of a note: two exact rows of `n`, the candidates of two positions of `n`."""
    x, (op, rule) = FUNCTIONS["amm_with_exact_rows"].x[0], FUNCTIONS["amm_with_exact_rows"].state
    for call in (
        lambda x: amm_with_exact_rows(x, op, rule, 2),
        lambda x: max_over_positions(x, op, num_candidates=2),
    ):
        for constraints in ([], ["n >= 2"]):
            (n,) = export.symbolic_shape("n", constraints=constraints)
            shape = jax.ShapeDtypeStruct((n, x.shape[1]), x.dtype)
            to_export = export.export(jax.jit(call), disabled_checks=disabled_export_checks())
            if not constraints:
                with pytest.raises(Exception, match="inconclusive"):
                    to_export(shape)
                continue
            np.testing.assert_allclose(to_export(shape).call(x), call(x), rtol=1e-5, atol=1e-4)
