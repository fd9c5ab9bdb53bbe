"""`fuse`: activations and residuals that follow the products of a model join their kernel calls."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
from flax import linen, nnx

from jax_maddness.core import products
from jax_maddness.core.fusion import fused

_DIFFERENTIATED = ("JVPTracer", "LinearizeTracer")
"""Classes of JAX for arrays with respect to which a derivative is being taken."""


def fuse(model: Any) -> Callable[..., Any]:
    """Returns a function that computes what a model does, with what follows its products in their kernel calls.

    XLA computes an activation after a product in a pass of its own, which reads all outputs and writes as many once
    more. The function looks for products of this package whose result goes to nothing but a sum with an array of the
    same shape, an activation of `jax.nn` (relu, relu6, hard_swish, gelu, silu, sigmoid, and tanh), or one after the
    other, and computes these with the product, as `amm(x, op, activation=..., residual=...)` does. All else stays as
    it is. Nothing is gained where no layer is replaced, nor on other platforms than CPU.

    Results differ by the rounding of the activation, which is computed in float32; derivatives are those of `model`
    itself. A function that closes over what is differentiated runs as it is. A call traces the model anew: put the
    function into `jax.jit`.

    Args:
      model: a function whose results are arrays, such as `module.apply` of a linen module; or an `nnx.Module` that does
        not change its own state in a call, as `replace` returns it for an inference model.

    Returns:
      A function of the same arguments.

    Raises:
      TypeError: `model` is neither a function nor an `nnx.Module`.
      ValueError: in a call of the function, if the module changes its own state.

    Example:
      >>> import jax.numpy as jnp, numpy as np
      >>> from jax_maddness import FitConfig, amm, fit
      >>> x, w = jnp.float32(np.random.default_rng(0).standard_normal((64, 8))), jnp.ones((8, 4))
      >>> op = fit(x, w, num_codebooks=2, config=FitConfig("paper"), progress=False)
      >>> run = jax.jit(fuse(lambda x: jax.nn.relu(amm(x, op))))
      >>> bool(jnp.allclose(run(x), jax.nn.relu(amm(x, op)), atol=1e-5))
      True
    """
    if isinstance(model, nnx.Module):
        return functools.partial(_run_module, model)
    if isinstance(model, linen.Module) or not callable(model):
        hint = " Pass its `apply`." if isinstance(model, linen.Module) else ""
        raise TypeError(f"`model` is {type(model).__name__}; expected a function or an nnx.Module.{hint}")

    @functools.wraps(model)
    def run(*args: Any, **kwargs: Any) -> Any:
        return _run(model, args, kwargs)

    return run


def _run_module(model: nnx.Module, *args: Any, **kwargs: Any) -> Any:
    graph, state = nnx.split(model)

    def call(state: Any, args: Any, kwargs: Any) -> Any:
        before = jax.tree.leaves(state)  # taken now: the module may share the variables
        module = nnx.merge(graph, state)
        result = module(*args, **kwargs)
        after = jax.tree.leaves(nnx.state(module))
        if len(before) != len(after) or any(map(operator.is_not, before, after)):
            raise ValueError(
                f"`model`, {type(model).__name__}, changes its own state in a call, which would be lost. Set it to "
                "inference first (`model.eval()`), or fuse a function that returns the state."
            )
        return result

    return _run(call, (state, args, kwargs), {})


def _run(function: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    leaves, tree = jax.tree.flatten((args, kwargs))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)]

    def of_arrays(*arrays: Any) -> Any:
        """The function of the arrays alone; other arguments, such as flags, are what they are."""
        given = list(leaves)
        for place, array in zip(places, arrays, strict=True):
            given[place] = array
        args, kwargs = jax.tree.unflatten(tree, given)
        return function(*args, **kwargs)

    arrays = [leaves[place] for place in places]
    with products.recorded():
        closed, result = jax.make_jaxpr(of_arrays, return_shape=True)(*arrays)
    if any(type(constant).__name__ in _DIFFERENTIATED for constant in closed.consts):
        return of_arrays(*arrays)  # no function with derivatives of its own may close over these
    program = fused(closed)

    @jax.custom_jvp
    def run(*arrays: Any) -> Any:
        return jax.tree.unflatten(jax.tree.structure(result), program(*arrays))

    run.defjvp(lambda primals, tangents: jax.jvp(of_arrays, primals, tangents))
    return run(*arrays)
