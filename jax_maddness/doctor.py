"""Reports on this installation: versions, tiers, FFI versions, threads, and a self-test of the kernels."""

from __future__ import annotations

import platform
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

import jax_maddness
from jax_maddness import testing
from jax_maddness.core import aggregate, amm, encode, ffi
from jax_maddness.core.machine import processor, threads
from jax_maddness.core.types import LookupTables, MaddnessOp, ObliqueTrees, SplitTrees
from jax_maddness.learn import costs


def report() -> tuple[list[tuple[str, str]], list[str]]:
    """Collects facts about the installation and runs the self-test.

    Returns:
      The facts, as pairs of a topic and a finding; and a description of each problem, none if everything works.
    """
    facts = [
        ("jax_maddness", jax_maddness.__version__),
        ("jax, jaxlib", f"{jax.__version__}, {jax.lib.__version__}"),
        ("python, numpy", f"{platform.python_version()}, {np.__version__}"),
        ("machine", f"{platform.machine()}, {processor()}, {threads()} threads"),
        ("devices", ", ".join(str(d) for d in jax.devices())),
    ]
    try:
        facts.append(("backend", f"{ffi.backend()} (JAX_MADDNESS_BACKEND)"))
    except ValueError as error:
        return facts, [str(error)]
    built, running = ffi.api_versions()
    facts.append(("XLA FFI", f"extension built for {_dotted(built)}, running jaxlib has {_dotted(running)}"))
    if (reason := ffi.why_unavailable()) is not None:
        consequence = "every call fails" if ffi.backend() == "ffi" else "everything runs in pure JAX"
        return facts, [f"the kernels cannot be used, {consequence}: {reason}"]
    facts.append(("tiers", f"built {', '.join(ffi.tiers())}; this CPU runs {', '.join(ffi.supported_tiers())}"))
    try:
        facts.append(("active tier", str(ffi.active_tier())))
    except ValueError as error:
        return facts, [str(error)]
    measured = costs.read(costs.file()) is not None
    facts.append(("costs", str(costs.file()) if measured else "not measured yet (python -m jax_maddness tune)"))
    with testing.force_backend("ffi"):
        problems = list(_self_test())
    facts.append(("self-test", "failed" if problems else "every tier agrees with pure JAX"))
    if ffi.backend() == "jax":
        problems.append("the kernels are switched off by JAX_MADDNESS_BACKEND=jax, everything runs in pure JAX")
    return facts, problems


def main() -> int:
    """Prints the report; returns the exit status, which is 0 if there is no problem and 1 otherwise."""
    facts, problems = report()
    for topic, finding in facts:
        print(f"{topic:>14}  {finding}")
    print("All is well." if not problems else "Not well: " + "; ".join(problems))
    return 1 if problems else 0


def _self_test() -> Iterator[str]:
    """Yields a message for each result of a tier that differs from the definition in pure JAX."""
    for op, x in _examples():
        kind = type(op.trees)
        trees = tuple(a[None] for a in op.trees.arrays())
        tables = (op.tables.values[None], op.tables.scale[None], op.tables.offset[None])
        codes = kind.definition(x[None], *trees)[0]
        sums = aggregate.definition(codes[None], tables[0])[0]
        y = amm.definition(kind)(x[None], *trees, *tables)[0]
        for tier in ffi.supported_tiers():
            with testing.force_tier(tier):
                if not np.array_equal(encode.encode(x, op.trees), codes):
                    yield f"tier {tier}: codes of {kind.__name__} differ from pure JAX"
                if not np.array_equal(aggregate.aggregate(codes, op.tables), sums):
                    yield f"tier {tier}: sums differ from pure JAX"
                if not np.allclose(amm.amm(x, op), y, rtol=1e-5, atol=1e-3):
                    yield f"tier {tier}: outputs differ from pure JAX"


def _examples() -> list[tuple[MaddnessOp, jax.Array]]:
    """Returns ops and rows of sizes beside block edges, with ties, NaN, infinities and denormals among features."""
    rows, features, outputs, codebooks, width = 77, 37, 19, 5, 9
    rng = np.random.default_rng(0)
    special = np.array([0.0, -0.0, 1.0, np.nan, np.inf, -np.inf, 1e-40, -1e-40], np.float32)
    x = rng.standard_normal((rows, features), np.float32)
    x = np.where(rng.random(x.shape) < 0.3, rng.choice(special, x.shape), x)
    values = rng.integers(0, 256, (outputs, codebooks, 16), np.uint8)
    tables = LookupTables(jnp.asarray(values), jnp.full(outputs, 0.5), jnp.arange(outputs, dtype=jnp.float32))
    axis = SplitTrees(
        jnp.asarray(rng.integers(0, features, (codebooks, 4), np.int32)),
        jnp.asarray(rng.choice(np.array([0.0, 1.0, -1e-40, 0.3], np.float32), (codebooks, 15))),
        features,
    )
    oblique = ObliqueTrees(
        jnp.asarray(rng.integers(0, features, (codebooks, width), np.int32)),
        jnp.asarray(rng.integers(-127, 128, (codebooks, 4, width), np.int8)),
        jnp.asarray(rng.integers(-9000, 9000, (codebooks, 15), np.int32)),
        jnp.zeros(features),
        jnp.full(features, 50.0),
        features,
    )
    return [(MaddnessOp(trees, tables), jnp.asarray(x)) for trees in (axis, oblique)]


def _dotted(version: tuple[int, int] | None) -> str:
    return "none" if version is None else ".".join(map(str, version))
