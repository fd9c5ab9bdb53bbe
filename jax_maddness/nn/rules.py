"""Rules decide which layers of a model are replaced, and how: the first rule that matches a layer's path counts."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence

from jax_maddness.core import arguments
from jax_maddness.learn.config import FitConfig
from jax_maddness.nn.layers.kinds import CODES, FACTORS, INT8, PRODUCTS, REWRITTEN, TOP
from jax_maddness.nn.models.layer import Layer

CONVOLUTIONS = ("auto", "shared", "patches")
"""The values of `Rule.conv`."""
_FEATURES_PER_CODEBOOK = 16
"""The default ratio of features to codebooks."""
_FEATURES_PER_CODE_AT_REST = 4
"""The same for the outputs of a layer of which the greatest are found, whose codes are chosen at rest."""
TOP_CANDIDATES = 32
"""The default number of candidates for the greatest outputs, if more than twice as many are not wanted."""
_INTEGERS = (
    ("num_codebooks", 0, ", or None for one per 16 features"),
    ("num_candidates", 0, ", a number of positions, or None"),
    ("rank", 1, ", or None for an eighth of the lesser of features and outputs"),
    ("top", 1, ", a number of outputs, or None"),
)
"""Attributes of a rule that are integers or None: the least value, and words for None."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """Decides what happens to the layers whose path matches `pattern`.

    Attributes:
      pattern: a regular expression for the whole path (`re.fullmatch`), for example `"encoder/.*/mlp/.*"`. A path
        consists of the names of attributes, or positions in lists, that lead from the model to the layer, joined by
        "/"; a model that is one layer has the path "".
      num_codebooks: the number of codebooks C of each layer's op; None: one for every 16 features of a multiplication.
        0: none, where `config` asks for factors, or for method "int8".
      skip: leave these layers as they are.
      config: decides how their ops are learned.
      product: the kind of product that replaces the layer: look-ups, `"codes"`; factors in int8 without codes,
        `"factors"`; XLA's int8 with dynamic steps, `"int8"`; a product of low rank in floats, `"low rank"`; or,
        exactly, `"rewritten"`: depthwise convolutions as sums of shifted inputs times weights, 1x1 as products. Of
        the attributes below, the last three use `share` alone, and factors `conv` and `share`. `"top outputs"`: see
        `top`, which implies it.
      rank: the rank for `"factors"` and `"low rank"`; None: an eighth of the lesser of features and outputs. Factors of
        full rank are the whole product in int8 (`FitConfig("int8")`).
      conv: convolutions encode each position once and share the codes among the taps (`"shared"`), or encode whole
        patches (`"patches"`); `"auto"` takes the one with the smaller error on held-out rows.
      share: layers of one parent that read the same array, as query, key and value do, share one op, whose codes are
        computed once. The op has the `num_codebooks` of the rule of the first of them.
      exact_rows: the share of the rows, from 0 to less than 1, that stay exact: in every example the rows farthest from
        the mean of the layer's inputs, in standard deviations of its features. Look-ups are learned from the other
        rows. This costs that share of the exact product, and the kernel stays beside the tables.
      num_candidates: for a convolution of which only the maximum over all positions is used, through functions that do
        not decrease, such as ReLU: the layer returns that maximum alone, as a single position. Look-ups propose so many
        candidates for each output, and exact products decide between them; 0: look-ups decide. None: the layer returns
        all positions. With `top`: the number of candidates for the greatest outputs; None: 32, or twice `top`.
      top: for an output layer of which only the greatest outputs matter, as where tokens are chosen: the layer returns
        all outputs, of which the `top` greatest are found by look-ups and exact products, as by `top_k`. They are
        exact, and so are the other candidates; all others are approximate and kept below them. `num_codebooks` is then
        one for every 4 features by default. A layer with one product that is not in a scan; or a table of embeddings
        (`Embed`), of which `attend` is that product, and calls stay as they are.

    Raises:
      TypeError: An attribute is of another type. Integers of NumPy are taken, bools are no integers.
      ValueError: An attribute is out of range, or `product` does not go with the others.

    Example:
      >>> rule = Rule("encoder/.*/mlp/.*", num_codebooks=64)
      >>> rule.codebooks(num_features=512), Rule(".*").codebooks(num_features=512)
      (64, 32)
    """

    pattern: str
    num_codebooks: int | None = None
    skip: bool = False
    config: FitConfig = dataclasses.field(default_factory=FitConfig)
    conv: str = "auto"
    share: bool = True
    exact_rows: float = 0.0
    num_candidates: int | None = None
    product: str = CODES
    rank: int | None = None
    top: int | None = None

    def __post_init__(self) -> None:
        arguments.instance(self.pattern, "pattern", str)
        arguments.instance(self.config, "config", FitConfig)
        for name in ("skip", "share"):
            object.__setattr__(self, name, arguments.flag(getattr(self, name), name))
        for name, least, otherwise in _INTEGERS:
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, arguments.integer(value, name, least, otherwise))
        exact_rows = arguments.real(self.exact_rows, "exact_rows", "a share, from 0 to less than 1")
        object.__setattr__(self, "exact_rows", exact_rows)
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(
                f"`pattern` {self.pattern!r} is not a regular expression: {error}. A glob's `*` is written `.*`."
            ) from error
        arguments.choice(self.conv, "conv", CONVOLUTIONS)
        arguments.choice(self.product, "product", PRODUCTS)
        if self.top is not None and self.product == CODES:
            object.__setattr__(self, "product", TOP)
        if self.num_codebooks == 0 and self.product == CODES and not self.config.stands_alone:
            raise ValueError(
                "`num_codebooks` is 0, and `config` asks for nothing else. Pass `FitConfig(rank=...)` for factors, or "
                'method "int8".'
            )
        self._validate_exact_products()

    def _validate_exact_products(self) -> None:
        if not 0 <= self.exact_rows < 1:
            raise ValueError(f"`exact_rows` is {self.exact_rows!r}; expected a share, from 0 to less than 1.")
        if self.product == TOP:
            self._validate_top()
        elif self.top is not None:
            raise ValueError(f"`top` is {self.top}, but `product` is {self.product!r}. Leave one of them out.")
        elif self.product != CODES and self.needs_kernel:
            raise ValueError(
                f"`product` {self.product!r} supports neither `exact_rows` nor `num_candidates`. Leave them out."
            )

    def _validate_top(self) -> None:
        """Fills in the defaults of an output layer."""
        top = self.top or 1
        candidates = max(TOP_CANDIDATES, 2 * top) if self.num_candidates is None else self.num_candidates
        if candidates < top:
            raise ValueError(f"`num_candidates` is {candidates}, less than `top`, which is {top}. Take more.")
        if self.num_codebooks == 0:
            raise ValueError("`num_codebooks` is 0, but codes find the greatest outputs. Take at least 1.")
        if self.exact_rows:
            raise ValueError("`exact_rows` does not go with `top`. Leave it out.")
        object.__setattr__(self, "top", top)
        object.__setattr__(self, "num_candidates", candidates)

    @property
    def needs_kernel(self) -> bool:
        """Whether the layer needs its kernel beside the tables."""
        return self.product != TOP and (bool(self.exact_rows) or self.num_candidates is not None)

    def size(self, shape: tuple[int, int]) -> int:
        """Returns the size of the product that replaces a product [D, M]: C, or the rank, or 0."""
        if self.product in (CODES, TOP):
            return self.codebooks(shape[0])
        return 0 if self.product in (INT8, REWRITTEN) else min(self.rank or max(1, min(shape) // 8), *shape)

    def codebooks(self, num_features: int) -> int:
        """Returns the number of codebooks for a product with so many features: at most one per feature."""
        if self.product == FACTORS:
            return 0
        if self.num_codebooks is None and self.product == TOP:
            return max(1, num_features // _FEATURES_PER_CODE_AT_REST)
        if self.num_codebooks is None:
            return 0 if self.config.method == "int8" else max(1, num_features // _FEATURES_PER_CODEBOOK)
        return min(self.num_codebooks, num_features)


def validated_rules(rules: Rule | Sequence[Rule]) -> tuple[Rule, ...]:
    """Returns `rules` as a tuple; a single rule is a list of one.

    Raises:
      TypeError: One of them is no `Rule`.
      ValueError: There is none.
    """
    if not isinstance(rules, Rule | Iterable) or isinstance(rules, str):
        raise TypeError(f"`rules` is {rules!r:.100}; expected a `Rule`, or a list of them: Rule('encoder/.*').")
    rules = (rules,) if isinstance(rules, Rule) else tuple(rules)
    for rule in rules:
        arguments.instance(rule, "rules", Rule)
    if not rules:
        raise ValueError("`rules` is empty, so no layer would be replaced. Pass `[Rule('.*')]` for all of them.")
    return rules


def first_match(rules: Sequence[Rule], *paths: str) -> Rule | None:
    """Returns the first rule whose pattern matches one of a layer's paths; a layer in several places has several.

    Example:
      >>> rules = [Rule("head", skip=True), Rule(".*", num_codebooks=4)]
      >>> first_match(rules, "head").skip, first_match(rules, "body/0").num_codebooks
      (True, 4)
    """
    return next((rule for rule in rules if any(re.fullmatch(rule.pattern, path) for path in paths)), None)


def decide(layers: Sequence[Layer], rules: Sequence[Rule]) -> list[tuple[Layer, Rule]]:
    """Returns the layers that are to be replaced, each with its rule."""
    matched = [(layer, first_match(rules, layer.path, *layer.others)) for layer in layers if not layer.reason]
    return [(layer, rule) for layer, rule in matched if rule is not None and not rule.skip]
