"""What is measured on a problem: amm with its variants, and what one would use instead. Imports JAX: see measure.py.

Times only, so the ops are random; but each codebook's features are neighbours, as `fit` chooses them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jax_maddness
from benchmarks import records
from benchmarks.records import Problem
from jax_maddness import LookupTables, MaddnessOp, SplitTrees, testing
from jax_maddness.core.types import SMALL_BATCH

TINY = 1e-30
"""The least magnitude of a row or column that int8 represents: zeros divide by it, too."""


@dataclasses.dataclass(frozen=True)
class Contender:
    """A call to time, and what its measurement will say of it.

    Attributes:
      repeats: how many times one call does the work.
      minus: the contender whose time is taken off, by its `what`.
    """

    what: str
    kind: str
    call: Callable[[], Any]
    codebooks: int = 0
    variant: str = ""
    tier: str = ""
    itemsize: int = 4
    repeats: int = 1
    minus: str = ""
    context: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext


def contenders(problem: Problem, threads: int, tiers: Sequence[str] = ()) -> list[Contender]:
    """Everything to measure on `problem`; amm runs on `tiers` if there are any, else on the best one."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((problem.rows, problem.features), np.float32))
    w = jnp.asarray(rng.standard_normal((problem.features, problem.outputs), np.float32))
    found = [*xla(x, w), *torch(x, w, threads)]
    if "columns" in problem.extras:
        by_column = jnp.copy(x.T)
        found.append(
            Contender(f"{records.F32}, column-major x", "other", run(lambda xt, w: jnp.matmul(xt.T, w), by_column, w))
        )
    if "read" in problem.extras:
        found += reads(x)
    ops = {c: random_op(rng, problem, c) for c in problem.codebooks}
    for c, op in ops.items():
        found += amms(x, op, problem, c, tiers)
    if "loop" in problem.extras:
        found += loops(x, w, next(iter(ops.values())))
    return found


def run(f: Callable, *operands: Any) -> Callable[[], Any]:
    """A call of jitted `f` that waits for the result."""
    jitted = jax.jit(f)
    return lambda: jax.block_until_ready(jitted(*operands))


def int8_columns(w: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`w` in int8, and the step of each output."""
    step = jnp.maximum(jnp.max(jnp.abs(w), axis=0), TINY) / 127
    return jnp.round(w / step).astype(jnp.int8), step


def int8_dynamic(x: jax.Array, w8: jax.Array, w_step: jax.Array) -> jax.Array:
    """`x @ (w8 * w_step)` by XLA's int8 dot, each row of `x` rounded to steps of its own."""
    step = jnp.maximum(jnp.max(jnp.abs(x), axis=-1, keepdims=True), TINY) / 127
    dot = jnp.matmul(jnp.round(x / step).astype(jnp.int8), w8, preferred_element_type=jnp.int32)
    return dot * (step * w_step)


def xla(x: jax.Array, w: jax.Array) -> Iterator[Contender]:
    """XLA's own products."""
    w8, w_step = int8_columns(w)
    x8 = jnp.round(x * 30).clip(-127, 127).astype(jnp.int8)
    widened = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)
    narrow = functools.partial(jnp.matmul, preferred_element_type=jnp.int32)
    yield Contender(records.F32, "rival", run(jnp.matmul, x, w))
    yield Contender(records.BF16, "rival", run(widened, x.astype(jnp.bfloat16), w.astype(jnp.bfloat16)))
    yield Contender(records.INT8_GIVEN, "rival", run(narrow, x8, w8))
    yield Contender(records.INT8_DYNAMIC, "rival", run(int8_dynamic, x, w8, w_step))


def torch(x: jax.Array, w: jax.Array, threads: int) -> list[Contender]:
    """torch's dynamically quantised linear layer, where torch is installed and still has it."""
    model = torch_linear(np.array(w), threads)
    if model is None:
        return []
    import torch as pytorch

    rows = pytorch.from_numpy(np.array(x))
    return [Contender(records.TORCH, "rival", lambda: model(rows), context=pytorch.inference_mode)]


def torch_linear(w: np.ndarray, threads: int) -> Callable[[Any], Any] | None:
    """A tensor [N, D] -> its product with `w [D, M]`, dynamically quantised; None where torch cannot."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch as pytorch

    pytorch.set_num_threads(threads)
    linear = pytorch.nn.Linear(w.shape[0], w.shape[1], bias=False)
    with pytorch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this is deprecated: its successor needs a package of its own
        linear.weight.copy_(pytorch.from_numpy(w.T))
        try:
            quantize = pytorch.ao.quantization.quantize_dynamic
            model = quantize(pytorch.nn.Sequential(linear), {pytorch.nn.Linear}, dtype=pytorch.qint8)
            model(pytorch.zeros(1, w.shape[0]))
        except (AttributeError, RuntimeError, NotImplementedError):
            return None
    return model


def reads(x: jax.Array) -> Iterator[Contender]:
    """Two of the fastest plain reads of all of x; the faster one is what the table compares with."""
    words = np.asarray(x).reshape(-1).view(np.uint32)
    yield Contender("reading x (jitted jnp.max)", "read", run(jnp.max, x))
    yield Contender("reading x (np.bitwise_or.reduce)", "read", lambda: np.bitwise_or.reduce(words))


def amms(x: jax.Array, op: MaddnessOp, problem: Problem, c: int, tiers: Sequence[str]) -> Iterator[Contender]:
    """amm in every layout of its op that suits the problem; then the extras."""
    best = jax_maddness.active_tier() or "jax"
    name = f"amm, D/C = {records.per_codebook(problem.features, c)}"
    for layout, laid_out in layouts(op, problem.rows).items():
        for tier in tiers or (best,):
            variant = _joined(layout, tier if tier != best else "")
            context = functools.partial(testing.force_tier, tier) if tier != best else contextlib.nullcontext
            call = run(jax_maddness.amm, x, laid_out)
            yield Contender(_joined(name, variant), "amm", call, c, variant, tier, context=context)
    if "tiers" in problem.extras and not tiers:
        for tier in (t for t in jax_maddness.supported_tiers() if t != best):
            context = functools.partial(testing.force_tier, tier)
            call = run(jax_maddness.amm, x, op)
            yield Contender(_joined(name, tier), "amm", call, c, tier, tier, context=context)
    if "dtypes" in problem.extras:
        for dtype in (jnp.bfloat16, jnp.float16):
            variant = f"{jnp.dtype(dtype).name} rows"
            call = run(jax_maddness.amm, x.astype(dtype), op)
            yield Contender(_joined(name, variant), "amm", call, c, variant, best, itemsize=2)
    if "columns" in problem.extras:
        call = run(lambda xt, op: jax_maddness.amm(xt.T, op), jnp.copy(x.T), op)
        yield Contender(_joined(name, "column-major x"), "amm", call, c, "column-major x", best)


def layouts(op: MaddnessOp, rows: int) -> dict[str, MaddnessOp]:
    """The op, and other arrangements of the same tables that suit so many rows, by name."""
    return {"": op} | ({records.SMALL_BATCH: jax_maddness.with_small_batch_tables(op)} if rows <= SMALL_BATCH else {})


def loops(x: jax.Array, w: jax.Array, op: MaddnessOp, repeats: int = 1000) -> Iterator[Contender]:
    """One call of amm and of the f32 product inside a jitted loop: no Python, but XLA's and the FFI's own overhead."""
    empty = "an empty jitted loop"
    small = 0.01 * w  # the loop feeds outputs back; they may not grow
    yield Contender(empty, "empty", in_a_loop(lambda x, w: x, repeats, x, w), repeats=repeats)
    for what, f, operand in ((records.F32, jnp.matmul, small), ("amm", jax_maddness.amm, op)):
        call = in_a_loop(f, repeats, x, operand)
        c = op.num_codebooks if what == "amm" else 0
        name = _joined(what, records.IN_A_LOOP)
        yield Contender(name, "loop", call, c, records.IN_A_LOOP, repeats=repeats, minus=empty)


def along_a_sweep(problems: Sequence[Problem], looped: bool) -> Iterator[Contender]:
    """amm on each problem, less what an empty call costs; `looped`: inside a jitted loop, to be rid of Python.

    The op has the layout for few rows where all problems along the sweep suit it.
    """
    rng = np.random.default_rng(0)
    tier, small = jax_maddness.active_tier() or "jax", jnp.zeros((1, 1))
    empty = in_a_loop(lambda x, w: x, 1000, small, small) if looped else run(lambda x: x + 1, small)
    yield Contender("nothing", "empty", empty, repeats=1000 if looped else 1)
    layout = records.SMALL_BATCH if all(p.rows <= SMALL_BATCH for p in problems) else ""
    for problem in problems:
        c = problem.codebooks[0]
        x, op = (
            jnp.asarray(rng.standard_normal((problem.rows, problem.features), np.float32)),
            random_op(rng, problem, c),
        )
        op = layouts(op, problem.rows)[layout]
        repeats = max(8, min(1000, 2**25 // (problem.rows * c * problem.outputs))) if looped else 1
        call = amm_in_a_loop(repeats, x, op) if looped else run(jax_maddness.amm, x, op)
        yield Contender("amm", "amm", call, c, layout, tier, repeats=repeats, minus="nothing")


def amm_in_a_loop(repeats: int, x: jax.Array, op: MaddnessOp) -> Callable[[], Any]:
    """Calls amm so many times in one compiled loop; what goes round is the offset, as XLA would first copy x."""

    def step(_: int, offset: jax.Array) -> jax.Array:
        return jax_maddness.amm(x, replace(op, tables=replace(op.tables, offset=offset)))[0]

    replace = dataclasses.replace
    return run(lambda offset: jax.lax.fori_loop(0, repeats, step, offset), op.tables.offset)


def in_a_loop(f: Callable, repeats: int, x: jax.Array, operand: Any) -> Callable[[], Any]:
    """Calls `f(x, operand)` so many times in one compiled loop, x depending on the last result."""

    def loop(x: jax.Array, operand: Any) -> jax.Array:
        return jax.lax.fori_loop(0, repeats, lambda _, x: x.at[:1, :1].set(f(x, operand)[:1, :1]), x)

    return run(loop, x, operand)


def random_op(rng: np.random.Generator, problem: Problem, codebooks: int) -> MaddnessOp:
    """An op whose outputs mean nothing; each codebook reads four features of its own share of them."""
    d, m = problem.features, problem.outputs
    first = np.arange(codebooks)[:, None] * d // codebooks
    indices = np.minimum(first + rng.integers(0, -(-d // codebooks), (codebooks, 4)), d - 1)
    thresholds = rng.standard_normal((codebooks, 15), np.float32)
    values = rng.integers(0, 256, (m, codebooks, 16), np.uint8)
    trees = SplitTrees(jnp.asarray(indices, jnp.int32), jnp.asarray(thresholds), d)
    return MaddnessOp(trees, LookupTables(jnp.asarray(values), jnp.full(m, 0.001), jnp.zeros(m)))


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)
