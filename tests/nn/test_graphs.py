"""Random small models (fuzz/models.py): exact products change nothing, and codes are `amm` by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from fuzz import models

from jax_maddness import Rule, replace


@pytest.mark.parametrize("kind", ["nnx", "linen"])
@pytest.mark.parametrize("seed", range(4))
def test_exact_products_change_nothing(seed, kind):
    models.check_exact(seed, kind)


@pytest.mark.parametrize("kind", ["nnx", "linen"])
@pytest.mark.parametrize("kinds", [("linear", "cond"), ("shared", "remat")])
def test_codes_are_amm_in_each_layers_place(kinds, kind):
    x = models.inputs(0)
    models.check_codes_of(0, kind, models.model_of(kinds, 0, kind, x), kinds, x)


class Attributes(nn.Module):
    """A model whose layers are in attributes, as those of `nn.Sequential` are."""

    first: nn.Module
    others: tuple[nn.Module, ...]

    @nn.compact
    def __call__(self, x):
        for module in (self.first, *self.others, nn.Dense(4)):
            x = module(x)
        return x


class Around(nn.Module):
    """A model within another one."""

    part: nn.Module

    def __call__(self, x):
        return 2 * self.part(x)


def test_linen_layers_in_attributes_are_replaced():
    """They had other paths in the replaced model, where the exact layers went on in silence."""
    model, x = Attributes(nn.Dense(4), (nn.Sequential([nn.Dense(4), nn.tanh]), nn.Dense(4))), jnp.ones((3, 4))
    variables = model.init(jax.random.key(0), x)
    fast, new = replace((model, variables), Rule(".*", product="int8"), [x])
    assert len(fast.specs) == 4
    assert not any(spec.keeps_kernel for _, spec in fast.specs)
    assert "params" not in new
    y = fast.apply(new, x)
    np.testing.assert_allclose(y, model.apply(variables, x), atol=0.05)
    nested = {name: {"part": arrays} for name, arrays in new.items()}
    np.testing.assert_array_equal(Around(fast).apply(nested, x), 2 * y)
