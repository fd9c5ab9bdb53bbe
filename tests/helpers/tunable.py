"""Small models with a few layers replaced, learned from few rows, so that fine-tuning has something to gain."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

from jax_maddness import FitConfig, Rule, replace

PAPER = FitConfig("paper")


class Perceptron(nnx.Module):
    """Two layers that are replaced, and a head, which stays."""

    def __init__(self, rngs):
        self.first = nnx.Linear(8, 16, rngs=rngs)
        self.second = nnx.Linear(16, 16, rngs=rngs)
        self.head = nnx.Linear(16, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.second(nnx.relu(self.first(x)))))


class Net(nn.Module):
    """Two convolutions and a head, which stays."""

    @nn.compact
    def __call__(self, x):
        for width in (8, 8):
            x = nn.relu(nn.Conv(width, (3, 3))(x))
        return nn.Dense(3)(x.mean((1, 2)))


@functools.cache
def perceptron():
    """Learned from few rows, so that there is something to gain. Models and batches are never changed."""
    rng = np.random.default_rng(0)
    mixed = rng.standard_normal((2, 8))
    batches = [jnp.asarray(rng.standard_normal((64, 2)) @ mixed, jnp.float32) for _ in range(16)]
    model = Perceptron(nnx.Rngs(0))
    return model, replace(model, [Rule("first|second", num_codebooks=4, config=PAPER)], batches[:1]), batches


@functools.cache
def net(conv="shared"):
    batches = [jnp.asarray(x, jnp.float32) for x in np.random.default_rng(0).standard_normal((10, 16, 6, 6, 2))]
    module = Net()
    model = (module, jax.jit(module.init)(jax.random.key(0), batches[0]))
    return model, replace(model, [Rule("Conv.*", num_codebooks=9, conv=conv, config=PAPER)], batches[:2]), batches


def patches():
    return net("patches")
