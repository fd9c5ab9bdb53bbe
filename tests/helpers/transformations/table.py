"""The rows of docs/transformations.md, and the cells in which something is special."""

import dataclasses
from collections.abc import Callable

import jax
from helpers.transformations import checks, derivatives, devices
from helpers.transformations.cases import Case
from jax.sharding import AxisType


@dataclasses.dataclass(frozen=True)
class Row:
    """A transformation: how a page shows it, and its check, which compares it with plain calls."""

    shown: str
    check: Callable[[Case], None]


def _mesh_rows(kind: AxisType) -> dict[str, Row]:
    name = kind.name.lower()
    shown = f"`jax.set_mesh`, {kind.name} axes"
    return {
        f"{name}_mesh": Row(f"{shown}: rows are sharded", devices.on_mesh(kind)),
        f"grad_on_{name}_mesh": Row(f"{shown}: `grad` in `x`", devices.grad_on_mesh(kind)),
        f"vmap_on_{name}_mesh": Row(f"{shown}: `vmap` over a sharded dimension of `x`", devices.vmap_on_mesh(kind)),
    }


GROUPS: dict[str, dict[str, Row]] = {
    "Compilation": {
        "jit": Row("`jax.jit`", checks.jit),
        "ahead_of_time": Row("`jax.jit(f).lower(...).compile()`", checks.ahead_of_time),
        "eval_shape": Row("`jax.eval_shape`", checks.eval_shape),
        "donation": Row("`jax.jit(f, donate_argnums=...)`", checks.donation),
        "export": Row("`jax.export`, for CPU, serialized", checks.exported),
        "export_any_batch": Row("`jax.export`, the first dimension symbolic", checks.exported_for_any_batch),
        "export_tpu_gpu": Row("`jax.export`, for TPU and GPU", checks.portable),
    },
    "Batches": {
        "vmap_x": Row("`vmap` over `x`", checks.vmap_over_x),
        "vmap_op": Row("`vmap` over the op", checks.vmap_over_state),
        "vmap_both": Row("`vmap` over both", checks.vmap_over_both),
        "nested_vmap": Row("`vmap` of `vmap`, other dimensions", checks.nested_vmap),
        "empty_batch": Row("no rows, and `vmap` over none", checks.empty_batch),
    },
    "Derivatives": {
        "grad_x": Row("`grad` in `x`", derivatives.of_all(derivatives.in_x)),
        "grad_op": Row("`grad` in the op", derivatives.of_all(derivatives.in_state)),
        "jvp": Row("`jvp` in `x`", derivatives.of_all(derivatives.forward)),
        "hessian": Row("`hessian` in `x`", derivatives.hessian),
        "remat": Row("`grad` of `jax.checkpoint`", derivatives.of_all(derivatives.in_x_remat, derivatives.in_x)),
        "vmap_of_grad": Row("`vmap` over `x` of `grad` in `x`", derivatives.vmap_of_grad),
    },
    "Control flow": {
        "scan": Row("`lax.scan` over `x` and ops", checks.scan),
        "while_loop": Row("`lax.while_loop`", checks.while_loop),
        "cond": Row("`lax.cond`", checks.cond),
    },
    "Devices": {
        "shard_map": Row("`jax.shard_map`", devices.shard_map),
        "grad_in_shard_map": Row("`jax.shard_map` of `grad` in `x`", devices.grad_in_shard_map),
        **_mesh_rows(AxisType.Auto),
        **_mesh_rows(AxisType.Explicit),
        "vmap_of_grad_on_explicit_mesh": Row(
            "`jax.set_mesh`, Explicit axes: `vmap` of `grad` in `x`", devices.vmap_of_grad_on_mesh(AxisType.Explicit)
        ),
    },
    "Settings and threads": {
        "x64_debug_nans": Row(
            "`jax_enable_x64` and `jax_debug_nans`",
            checks.under(lambda: jax.enable_x64(True), lambda: jax.debug_nans(True)),
        ),
        "strict_promotion": Row(
            'promotion of dtypes `"strict"` and of ranks `"raise"`',
            checks.under(lambda: jax.numpy_dtype_promotion("strict"), lambda: jax.numpy_rank_promotion("raise")),
        ),
        "threads": Row("four threads at once", checks.threads),
    },
}

TRANSFORMATIONS = {name: row for rows in GROUPS.values() for name, row in rows.items()}


@dataclasses.dataclass(frozen=True)
class Note:
    """A footnote of cells.

    Attributes:
      rows, functions: the cells that it is about, all combinations of both.
      text: the reason, and what to do.
      raises: the message of the error that these cells raise, a regular expression; None: they work.
      applies: whether there is anything to test.
    """

    rows: tuple[str, ...]
    functions: tuple[str, ...]
    text: str
    raises: str | None = None
    applies: bool = True


NOTES = (
    Note(
        tuple(name for name in TRANSFORMATIONS if "grad" in name or name in ("jvp", "hessian", "remat")),
        ("encode", "aggregate", "sample"),
        "The results are integers, so that derivatives pass through them as through constants: they are zero.",
    ),
    Note(
        ("hessian",),
        ("aggregate",),
        "Codes are integers, which have no second derivative: JAX refuses such a hessian of any function.",
        applies=False,
    ),
    Note(
        ("vmap_x", "vmap_both", "nested_vmap", "scan", "shard_map"),
        ("amm_with_exact_rows",),
        "`max_exact` counts the rows of one call: those of one member under `vmap`, of one step of a loop, of one "
        "shard inside of `shard_map`. Without these it counts all rows, sharded or not.",
    ),
    Note(
        ("export_any_batch",),
        ("amm_with_exact_rows", "max_over_positions"),
        "If the number of rows (of positions for `max_over_positions`) is symbolic, JAX must know that it is at least "
        '`max_exact` (`num_candidates`): `symbolic_shape("n", constraints=["n >= 2"])`.',
    ),
    Note(
        ("vmap_on_explicit_mesh", "vmap_of_grad_on_explicit_mesh"),
        ("search", "sample"),
        "Raises a `ValueError`. Leave out `vmap`: both take rows with any leading dimensions, sharded or not. "
        "Or map inside of `jax.shard_map`.",
        raises="`jax.vmap` maps `search` over a dimension that is sharded over members, an Explicit axis of the mesh",
    ),
    Note(
        ("vmap_of_grad_on_explicit_mesh",),
        ("amm_with_exact_rows",),
        "Raises an error of JAX, which cannot differentiate a gather by indices that are sharded like this. Leave out "
        "`vmap`, or map inside of `jax.shard_map`.",
        raises="(?i)mesh|sharding",
    ),
)


def notes_of(row: str, function: str) -> list[Note]:
    """Returns the notes of a cell."""
    return [note for note in NOTES if row in note.rows and function in note.functions]
