"""The text of docs/transformations.md, made from the declared table.

`PYTHONPATH=tests .venv/bin/python -m helpers.transformations.page` writes it.
"""

import textwrap
from pathlib import Path

from helpers.transformations.cases import FUNCTIONS
from helpers.transformations.table import GROUPS, NOTES, Note, notes_of

PAGE = Path(__file__).parents[3] / "docs" / "transformations.md"

TEXT = """
# Transformations

The tables below say which transformations and settings of JAX the public functions support that run on arrays. Every
cell is two tests, one with the C++ kernels and one in pure JAX, and holds for both:

```sh
make test-python                                             # sets up .venv and runs all tests
.venv/bin/python -m pytest tests/test_transformations.py     # the cells alone
.venv/bin/python -m pytest tests/test_transformations.py -k "vmap_op-amm-kernels"
```

The test of a cell is `test_cell[ROW-FUNCTION-BACKEND]`, where `BACKEND` is `kernels` or `jax`. It transforms a call and
compares the result with plain calls: integers and ids must be equal, and floats agree up to rounding. Derivatives are
compared with those that the documentation of a function promises, computed by JAX from the exact products.

| mark | meaning |
|---|---|
| ✓ | works |
| ✗ | raises an error |
| n/a | there is no such transformation |
| (1) | see the note of that number |

Here `x` is the first argument (the rows, queries or codes), and "the op" is the second one, a pytree: trees for
`encode`, lookup tables for `aggregate`, an index for `search` and `sample`, an op and a rule for
`amm_with_exact_rows`, and an op for all others. Ops keep their weights (`fit(..., keep_weights=True)`), without which
derivatives in `x` are an error that says so.
"""

OTHERS = """
## Other functions
- `with_small_batch_tables` rearranges the tables of an op, and works on traced arrays, too.
- `sample` takes a key before `x`. Under `vmap` pass a key for each member, or all of them get the same noise.
- The loops of `jax_maddness.decoding` are `lax.while_loop` around calls of `top_k`: they run inside of `jax.jit`.
- `fit`, `fit_budget`, `fit_outlier_rows`, `fold_feature_order`, `evaluate`, `build_index`, `add_vectors`,
  `remove_vectors`, `with_capacity`, `shard_index`, `search_within` and `measure_recall` look at values, so that they
  run outside of `jax.jit`; so do `save`, `load`, `save_index` and `load_index`, which write and read files.
- `active_tier`, `supported_tiers`, `disabled_export_checks`, `measure_costs` and `retain_freed_memory` take no arrays.
- Layers that `replace` puts into a [Flax model](flax.md) call `amm` and `max_over_positions`; the functions for models
  (`capture`, `plan`, `replace`, `finetune`, `prune_unused_outputs`, `save_model`, `load_model`) run outside of
  `jax.jit`. What `fuse` returns belongs inside of it: products in `jit`, scans, loops, branches and remat are fused
  there, those under a `vmap` inside of the function stay by themselves; derivatives are those of the function.

[Backends](backends.md#export) has more about export: which exemptions it needs, and what of a mesh can be serialized.
"""


def page() -> str:
    """Returns the text of the page."""
    lines = [TEXT.strip(), ""]
    for group, rows in GROUPS.items():
        lines += [f"## {group}", "| row | transformation | " + " | ".join(f"`{name}`" for name in FUNCTIONS) + " |"]
        lines += ["|---" * (2 + len(FUNCTIONS)) + "|"]
        for name, row in rows.items():
            marks = [_mark(notes_of(name, function)) for function in FUNCTIONS]
            lines.append(f"| `{name}` | {row.shown} | " + " | ".join(marks) + " |")
        lines.append("")
    notes = [textwrap.fill(f"{i}. {note.text}", 120, subsequent_indent="   ") for i, note in enumerate(NOTES, 1)]
    lines += ["## Notes", *notes, "", OTHERS.strip(), ""]
    return "\n".join(lines)


def _mark(notes: list[Note]) -> str:
    numbers = ", ".join(str(NOTES.index(note) + 1) for note in notes)
    mark = "✗" if any(note.raises for note in notes) else "✓" if all(note.applies for note in notes) else "n/a"
    return f"{mark} ({numbers})" if notes else mark


if __name__ == "__main__":
    PAGE.write_text(page())
