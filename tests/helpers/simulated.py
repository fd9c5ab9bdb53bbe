"""A bench on which everything takes the time, and has the error and the drop, that a table says."""

import dataclasses
import itertools

import numpy as np

from jax_maddness.nn.planning.clock import Clock, TimeUpError
from jax_maddness.nn.planning.report import Plan
from jax_maddness.nn.planning.search import Search, SearchOptions
from jax_maddness.nn.planning.verdict import LayerPlan, Option

PRODUCTS = ("codes", "factors", "int8", "low rank")
SIZES = [("codes", 4), ("codes", 8), ("factors", 4), ("factors", 16), ("factors", 64), ("int8", 0), ("low rank", 8)]
SIZES += [("rewritten", 0)]


@dataclasses.dataclass
class Simulated:
    """A model of layers; `layers` have, by product, milliseconds and NMSE, and under "exact" milliseconds.

    Attributes:
      layers: by name.
      sensitivity: by name, the drop for an NMSE of 1; drops add up.
      rest: milliseconds of everything else.
      seconds: what each kind of step takes.
      noise: of all times, as a share.
      factors: of the drop, by the kind of a refit.
      fitted: the product of those that were fitted.
      knows: times of products are known before they are learned.
      fails: calls `fails(kind of step, name, product)`, which may raise.
      examples: of which the metric is a share.
    """

    layers: dict
    sensitivity: dict
    rest: float = 1.0
    seconds: dict = dataclasses.field(default_factory=dict)
    noise: float = 0.005
    fails: object = lambda *_: None
    knows: bool = False
    factors: dict = dataclasses.field(default_factory=dict)
    fitted: float = 1.0
    now: float = 0.0
    examples: int = 0

    def takes(self, kind, name="", product=None):
        """Time goes by; learning is interrupted when the time of the plan is up."""
        self.fails(kind, name, product)
        self.now += self.seconds.get(kind, 0.1)
        if kind == "codes" and self.clock.left < 0:
            self.now += self.clock.left
            raise TimeUpError

    def before(self):
        self.takes("drop")
        return 1.0

    def exact(self, names):
        self.takes("look")
        return [Option("exact", 0, self.layers[name]["exact"], self.noise, 0.0) for name in names]

    def whole_model(self):
        self.takes("compare")
        return self.ms({}), self.rest

    def products(self, name):
        return [product for product in SIZES if product in self.layers[name]]

    def error(self, name, product):
        self.takes("codes" if product[0] == "codes" else "learn", name, product)
        return self.layers[name][product][1]

    def times(self, name, products):
        self.takes("times", name)
        return [(self.layers[name][product][0], self.noise) for product in products]

    def known_ms(self, name, product):
        return self.layers[name][product][0] if self.knows else None

    def drop(self, mix):
        self.takes("drop", "", mix)
        return self.drop_of(mix)

    def compare(self, mixes):
        self.takes("compare")
        return [(self.ms(mix), self.noise) for mix in mixes]

    def refit(self, mix, kind, steps):
        """Each kind multiplies the drop by a factor; what is better is kept, and the next one begins with it."""
        self.takes(kind, "", mix)
        fitted = self.fitted * self.factors[kind]
        self.fitted = min(self.fitted, fitted)
        return self.drop_of(mix) * fitted, {(name, *product): kind for name, product in mix.items()}

    def drop_of(self, mix):
        """The true drop."""
        return sum(self.sensitivity[name] * self.layers[name][product][1] for name, product in mix.items())

    def ms(self, mix):
        """The true time of the whole model."""
        layers = (layer[mix[name]][0] if name in mix else layer["exact"] for name, layer in self.layers.items())
        return self.rest + sum(layers)

    def plan(self, max_drop, max_seconds, products=PRODUCTS, plan=None, written=None, refits=()):
        """Runs the search; returns the plan."""
        lines = (LayerPlan(name, (name,), "Linear", (64, 64), 100, products=products) for name in self.layers)
        plan = plan or Plan(tuple(lines), max_drop, "metric", "machine")
        self.clock = Clock(False, max_seconds, lambda: self.now)
        write = lambda: written is None or written.append(str(plan))  # noqa: E731
        Search(plan, self, self.clock, list(self.layers), write, SearchOptions(refits=refits)).run()
        return plan

    def whole(self, kind):
        """The mix with all layers by int8, or by factors of full rank."""
        return {
            name: next(p for p in reversed(SIZES) if p[0] == kind and p in layer) for name, layer in self.layers.items()
        }

    def best_ms(self, max_drop):
        """The time of the best mix within the drop, by trying all."""
        names = list(self.layers)
        choices = [[None, *self.products(name)] for name in names]
        mixes = (
            {name: product for name, product in zip(names, chosen, strict=True) if product}
            for chosen in itertools.product(*choices)
        )
        return min(self.ms(mix) for mix in mixes if self.drop_of(mix) <= max_drop)


def random_model(seed, layers=4):
    """Layers of random times and errors: int8 is close, codes and factors are fast, closer ones slower."""
    rng = np.random.default_rng(seed)
    made = {}
    for i in range(layers):
        exact = float(rng.uniform(0.5, 8))
        layer = {"exact": exact, ("int8", 0): (exact * rng.uniform(0.4, 1.3), 10 ** rng.uniform(-4.5, -3.5))}
        layer["factors", 64] = (exact * rng.uniform(0.3, 0.9), 10 ** rng.uniform(-4.5, -3.5))
        error, decay = 10 ** rng.uniform(-1.5, -0.3), rng.uniform(0.5, 2)  # NMSE at rank 4; it falls as a power
        for size, share in ((4, 0.08), (16, 0.2)):
            layer["factors", size] = (exact * share * rng.uniform(0.7, 1.5), error * (4 / size) ** decay)
        layer["low rank", 8] = (exact * rng.uniform(0.2, 0.8), error * 0.5**decay)
        for size in (4, 8):
            close = error * (4 / size) ** decay * 10 ** rng.uniform(-0.4, 0.4)
            layer["codes", size] = (exact * size / 40 * rng.uniform(0.7, 1.5), close)
        made[f"layer{i}"] = layer
    sensitivity = {name: float(10 ** rng.uniform(-2, 0.5)) for name in made}
    return Simulated(made, sensitivity, rest=float(rng.uniform(0.2, 5)))
