"""Layers of a plan with measurements that are made by hand."""

from jax_maddness.nn.planning.verdict import LayerPlan, Option


def line(*codes, name="layer", exact=10.0, int8=20.0, low=20.0, noise=0.0):
    """A layer; `codes` are (C, ms, NMSE, drop)."""
    others = [Option("exact", 0, exact, noise, 0.0), Option("int8", 0, int8, noise, 1e-4)]
    others += [Option("low rank", 4, low, noise, 0.01), *(Option("codes", c, ms, noise, e, d) for c, ms, e, d in codes)]
    return LayerPlan(name, (name,), "Linear", (64, 64), 100, tuple(others))
