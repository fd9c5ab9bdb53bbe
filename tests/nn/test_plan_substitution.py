"""Trials of single layers: the outputs are those of the replaced model, and no model is compiled for them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from helpers.ops import random_op

from jax_maddness import FitConfig, Rule, plan
from jax_maddness.learn.progress import Progress
from jax_maddness.nn.calibrate import learn_unit
from jax_maddness.nn.models.model import adapt, layers_of
from jax_maddness.nn.planning import measure, substitution
from jax_maddness.nn.planning.bench import with_product
from jax_maddness.nn.planning.substitution import Substitution
from jax_maddness.nn.replacement import CodesReplacement, with_replacements
from jax_maddness.nn.rules import decide
from jax_maddness.nn.units import units

WIDTH = 16


class Nnx(nnx.Module):
    """Layers that share an input, a convolution, one layer that is called twice, and one inside of a remat."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.first, self.second = (nnx.Linear(WIDTH, WIDTH, rngs=rngs) for _ in range(2))
        self.conv = nnx.Conv(WIDTH, WIDTH, (3,), rngs=rngs)
        self.twice, self.inside = (nnx.Linear(WIDTH, WIDTH, rngs=rngs) for _ in range(2))
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)

    def __call__(self, x):
        y = self.norm(self.first(x) * self.second(x))
        y = y + nnx.gelu(self.conv(y))
        y = nnx.relu(self.twice(self.twice(y)))
        return nnx.remat(lambda layer, y: layer(y))(self.inside, y)


class Linen(nn.Module):
    """The same in linen."""

    @nn.compact
    def __call__(self, x):
        y = nn.LayerNorm(name="norm")(nn.Dense(WIDTH, name="first")(x) * nn.Dense(WIDTH, name="second")(x))
        y = y + nn.gelu(nn.Conv(WIDTH, (3,), name="conv")(y))
        twice = nn.Dense(WIDTH, name="twice")
        y = nn.relu(twice(twice(y)))
        return nn.remat(nn.Dense)(WIDTH, name="inside")(y)


def model_of(kind, x):
    return Nnx() if kind == "nnx" else (Linen(), Linen().init(jax.random.key(0), x))


@pytest.fixture(scope="module")
def batches():
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal((rows, 6, WIDTH)), jnp.float32) for rows in (4, 4, 7)]


def substitution_of(kind, batches):
    model = adapt(model_of(kind, batches[0]))
    found = {unit.owner: unit for unit in units(decide(layers_of(model, batches[0]), [Rule(".*")]))}
    return model, found, Substitution(model, list(found.values()), batches)


@pytest.mark.parametrize("kind", ["nnx", "linen"])
def test_the_outputs_are_those_of_the_replaced_model(kind, batches, rng):
    model, found, substituted = substitution_of(kind, batches)
    able = [name for name, unit in found.items() if substituted.can_replace(unit)]
    assert able == ["first+second", "conv"]
    for name in able:
        (d, m), rows = found[name].shape, [rng.standard_normal((50, 1, found[name].shape[0])).astype(np.float32)]
        for product in [("int8", 0), ("low rank", 2), ("codes", 2)]:
            unit = with_product(found[name], product)
            op = CodesReplacement(random_op(rng, d, 2, m))
            replacement = op if product[0] == "codes" else learn_unit(unit, rows, False, Progress(False))
            whole, run = with_replacements(model, [unit], [replacement]).run(), substituted.run(unit, replacement)
            exact = model.run()
            for batch in batches:
                scale = float(jnp.abs(whole(batch) - exact(batch)).max())
                # Far less than the layer's own error, which must not be lost: only rounding differs.
                assert float(jnp.abs(run(batch) - whole(batch)).max()) < 0.01 * scale
            if product[0] == "int8":
                assert substituted._program._cache_size() == 2  # one for each shape of a batch, for all units


@pytest.mark.parametrize("kind", ["nnx", "linen"])
def test_the_rest_of_a_model_has_everything_but_the_products(kind, batches):
    model, found, _ = substitution_of(kind, batches)
    some = [found[name] for name in ("first+second", "conv")]
    substituted = Substitution(model, some, batches)
    x = batches[0]
    zeros = {layer.path: lambda layer, x: 0 * layer(x) for unit in some for layer in unit.layers}
    np.testing.assert_allclose(substituted.rest(x)(), model.outputs(model.arrays(), x, zeros), rtol=1e-5, atol=1e-6)
    given = {name: jnp.ones(y.shape) for name, y in substituted._outputs(substituted._accessible(x)).items()}
    program = str(jax.make_jaxpr(substituted._outputs_without_units)(model.arrays(), x, given))
    # Three products stay: a layer that is called twice, and one inside of a remat.
    assert (program.count("dot_general["), program.count("conv_general_dilated[")) == (3, 0)
    assert program.count("optimization_barrier") == 3


def test_the_rest_is_not_known_where_units_cannot_be_left_out(batches):
    model, found, substituted = substitution_of("nnx", batches)
    assert substituted.rest(batches[0]) is None
    candidates = units([(layer, Rule(".*", num_candidates=2)) for layer in found["conv"].layers])
    assert Substitution(model, candidates, batches).rest(batches[0]) is None


def test_units_with_large_inputs_are_left_to_compiled_models(batches, monkeypatch):
    _, found, substituted = substitution_of("nnx", batches)
    inputs = 4 * sum(batch.size for batch in batches)
    for most, can in ((inputs, True), (inputs - 1, False)):
        monkeypatch.setattr(substitution, "MAX_BYTES", most)
        assert substituted.can_replace(found["conv"]) == can
    found = units([(layer, Rule(".*", num_candidates=2)) for layer in found["conv"].layers])
    assert not Substitution(adapt(Nnx()), found, batches).can_replace(found[0])


def test_models_that_cannot_be_cut_open_are_compiled_for_each_trial(batches, monkeypatch):
    def fails(*_):
        raise ValueError("an explicit sharding, perhaps")

    monkeypatch.setattr(Substitution, "_outputs_and_inputs", fails)
    _, found, substituted = substitution_of("nnx", batches)
    assert not any(substituted.can_replace(unit) for unit in found.values())


class Counted(nnx.Module):
    """A chain of layers that counts how often it is traced."""

    def __init__(self, layers, traces):
        rngs = nnx.Rngs(0)
        self.layers = nnx.List([nnx.Linear(WIDTH, WIDTH, rngs=rngs) for _ in range(layers)])
        self.traces = traces

    def __call__(self, x):
        self.traces.append(0)
        for layer in self.layers:
            x = x + jnp.tanh(layer(x))
        return x


class Traces:
    """A list that nnx takes for a static attribute."""

    def __init__(self):
        self.count = 0

    def append(self, _):
        self.count += 1


@pytest.mark.parametrize("layers", [3, 12])
def test_the_number_of_compiled_models_does_not_grow_with_the_number_of_layers(layers, monkeypatch):
    """Each compilation of a model traces it, so that the number of traces is an upper bound."""

    def times(units, replacements, seconds=0):
        return [(5.0, 0.0)] * len(units) + [(1.0 + i, 0.0) for i in range(len(replacements))]

    monkeypatch.setattr(measure, "times", times)
    monkeypatch.setattr(
        measure, "interleaved", lambda calls, seconds=0: [(8.0 * layers / (i + 1), 0.0) for i in range(len(calls))]
    )
    traces = Traces()
    rng = np.random.default_rng(0)
    data = [jnp.asarray(rng.standard_normal((32, WIDTH)), jnp.float32) for _ in range(3)]
    rule = Rule(".*", num_codebooks=2, config=FitConfig("paper"))
    products = ("factors", "low rank", "int8")
    found = plan(Counted(layers, traces), data, rule, max_drop=1e-4, products=products, progress=False)
    alone = [trial for trial in found.trials if len(trial.replaced) == 1]
    assert len(alone) >= layers / 2
    # The layers, whether they can be replaced, fingerprint, capture, what is accessible, the exact
    # model, the rest of it, the program.
    assert traces.count <= 11 + len(found.trials) - len(alone)
