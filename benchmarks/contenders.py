"""The calls that are measured on a problem: amm with its variants, and the alternatives.

The module imports JAX, which only measure.py may do (see there). Ops are random, as only times are measured, but the
features of each codebook are adjacent, as in many ops that `fit` learns.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import sys
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
"""Least magnitude of a row or column in int8, so that a row of zeros is not divided by zero."""


@dataclasses.dataclass(frozen=True)
class Contender:
    """A call to time, with the fields of its `Measurement`.

    Attributes:
      call: does the work and waits for it.
      repeats: number of times that one call does the work.
      minus: the contender whose time is subtracted, by its `what`.
      context: makes the context in which calls run.
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
    """Returns all contenders for `problem`; amm runs on `tiers`, or on the best tier if there are none."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((problem.rows, problem.features), np.float32))
    w = jnp.asarray(rng.standard_normal((problem.features, problem.outputs), np.float32))
    entrants = [*xla(x, w), *torch(x, w, threads)]
    if "columns" in problem.extras:
        by_column = jnp.copy(x.T)
        entrants.append(
            Contender(f"{records.F32}, column-major x", "other", run(lambda xt, w: jnp.matmul(xt.T, w), by_column, w))
        )
    if "read" in problem.extras:
        entrants += reads(x)
    ops = {c: random_op(rng, problem, c) for c in problem.codebooks}
    for c, op in ops.items():
        entrants += amms(x, op, problem, c, tiers)
    if "loop" in problem.extras:
        entrants += loops(x, w, next(iter(ops.values())))
    return entrants


def run(f: Callable, *operands: Any) -> Callable[[], Any]:
    """Returns a call of the jitted `f` that waits for the result."""
    jitted = jax.jit(f)
    return lambda: jax.block_until_ready(jitted(*operands))


def int8_columns(w: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rounds `w` to int8; returns it and the step of each output."""
    step = jnp.maximum(jnp.max(jnp.abs(w), axis=0), TINY) / 127
    return jnp.round(w / step).astype(jnp.int8), step


def int8_dynamic(x: jax.Array, w8: jax.Array, w_step: jax.Array) -> jax.Array:
    """Computes `x @ (w8 * w_step)` by XLA's int8 dot, with a step for each row of `x`, computed at run time."""
    step = jnp.maximum(jnp.max(jnp.abs(x), axis=-1, keepdims=True), TINY) / 127
    dot = jnp.matmul(jnp.round(x / step).astype(jnp.int8), w8, preferred_element_type=jnp.int32)
    return dot * (step * w_step)


def xla(x: jax.Array, w: jax.Array) -> Iterator[Contender]:
    """Yields the products of XLA."""
    w8, w_step = int8_columns(w)
    x8 = jnp.round(x * 30).clip(-127, 127).astype(jnp.int8)
    widened = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)
    narrow = functools.partial(jnp.matmul, preferred_element_type=jnp.int32)
    yield Contender(records.F32, "rival", run(jnp.matmul, x, w))
    yield Contender(records.BF16, "rival", run(widened, x.astype(jnp.bfloat16), w.astype(jnp.bfloat16)))
    yield Contender(records.INT8_GIVEN, "rival", run(narrow, x8, w8))
    yield Contender(records.INT8_DYNAMIC, "rival", run(int8_dynamic, x, w8, w_step))


def torch(x: jax.Array, w: jax.Array, threads: int) -> list[Contender]:
    """Returns torch's dynamically quantized linear layer, if torch is installed and still has it."""
    model = torch_linear(np.array(w), threads)
    if model is None:
        return []
    import torch as pytorch

    rows = pytorch.from_numpy(np.array(x))
    return [Contender(records.TORCH, "rival", lambda: model(rows), context=pytorch.inference_mode)]


def torch_linear(w: np.ndarray, threads: int) -> Callable[[Any], Any] | None:
    """Returns a function of tensors [N, D]: the dynamically quantized product with `w [D, M]`; None without torch."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch as pytorch

    pytorch.set_num_threads(threads)
    linear = pytorch.nn.Linear(w.shape[0], w.shape[1], bias=False)
    with pytorch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the function is deprecated, but its successor needs another package
        linear.weight.copy_(pytorch.from_numpy(w.T))
        try:
            quantize = pytorch.ao.quantization.quantize_dynamic
            model = quantize(pytorch.nn.Sequential(linear), {pytorch.nn.Linear}, dtype=pytorch.qint8)
            model(pytorch.zeros(1, w.shape[0]))
        except (AttributeError, RuntimeError, NotImplementedError) as error:
            print(f"torch's int8 is not measured: {error}", file=sys.stderr)
            return None
    return model


def reads(x: jax.Array) -> Iterator[Contender]:
    """Yields two of the fastest plain reads of all of x; the table compares with the faster one."""
    words = np.asarray(x).reshape(-1).view(np.uint32)
    yield Contender("reading x (jitted jnp.max)", "read", run(jnp.max, x))
    yield Contender("reading x (np.bitwise_or.reduce)", "read", lambda: np.bitwise_or.reduce(words))


def amms(x: jax.Array, op: MaddnessOp, problem: Problem, c: int, tiers: Sequence[str]) -> Iterator[Contender]:
    """Yields amm in every layout of its op that suits the problem, then the extras."""
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
    """Returns the op, and other layouts of the same tables that suit this number of rows, by name."""
    return {"": op} | ({records.SMALL_BATCH: jax_maddness.with_small_batch_tables(op)} if rows <= SMALL_BATCH else {})


def loops(x: jax.Array, w: jax.Array, op: MaddnessOp, repeats: int = 1000) -> Iterator[Contender]:
    """Yields amm and the f32 product inside a jitted loop: without Python, with the overhead of XLA and the FFI."""
    empty = "an empty jitted loop"
    small = 0.01 * w  # the loop feeds outputs back; they may not grow
    yield Contender(empty, "empty", in_a_loop(lambda x, w: x, repeats, x, w), repeats=repeats)
    for what, f, operand in ((records.F32, jnp.matmul, small), ("amm", jax_maddness.amm, op)):
        call = in_a_loop(f, repeats, x, operand)
        c = op.num_codebooks if what == "amm" else 0
        name = _joined(what, records.IN_A_LOOP)
        yield Contender(name, "loop", call, c, records.IN_A_LOOP, repeats=repeats, minus=empty)


def along_a_sweep(problems: Sequence[Problem], looped: bool) -> Iterator[Contender]:
    """Yields amm on each problem, whose time is reduced by that of an empty call.

    With `looped`, calls run inside a jitted loop, so that Python's time is excluded. The op has the small-batch tables
    if all problems along the sweep are small batches.
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
    """Returns a compiled loop of `repeats` calls of amm; it carries the offset, as XLA would copy x first."""

    def step(_: int, offset: jax.Array) -> jax.Array:
        return jax_maddness.amm(x, replace(op, tables=replace(op.tables, offset=offset)))[0]

    replace = dataclasses.replace
    return run(lambda offset: jax.lax.fori_loop(0, repeats, step, offset), op.tables.offset)


def in_a_loop(f: Callable, repeats: int, x: jax.Array, operand: Any) -> Callable[[], Any]:
    """Returns a compiled loop of `repeats` calls `f(x, operand)`, in which x depends on the last result."""

    def loop(x: jax.Array, operand: Any) -> jax.Array:
        return jax.lax.fori_loop(0, repeats, lambda _, x: x.at[:1, :1].set(f(x, operand)[:1, :1]), x)

    return run(loop, x, operand)


def random_op(rng: np.random.Generator, problem: Problem, codebooks: int) -> MaddnessOp:
    """Returns an op with random contents; each codebook reads four features of its own share of them."""
    d, m = problem.features, problem.outputs
    first = np.arange(codebooks)[:, None] * d // codebooks
    indices = np.minimum(first + rng.integers(0, -(-d // codebooks), (codebooks, 4)), d - 1)
    thresholds = rng.standard_normal((codebooks, 15), np.float32)
    values = rng.integers(0, 256, (m, codebooks, 16), np.uint8)
    trees = SplitTrees(jnp.asarray(indices, jnp.int32), jnp.asarray(thresholds), d)
    return MaddnessOp(trees, LookupTables(jnp.asarray(values), jnp.full(m, 0.001), jnp.zeros(m)))


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)
