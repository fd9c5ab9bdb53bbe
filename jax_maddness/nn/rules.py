"""Which layers of a model are replaced, and how: ordered rules over paths; the first that matches decides."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from jax_maddness.learn import validate
from jax_maddness.learn.fit import FitConfig
from jax_maddness.nn.layers.kinds import CODES, INT8, PRODUCTS
from jax_maddness.nn.models.layer import Layer

CONVOLUTIONS = ("auto", "shared", "patches")


@dataclasses.dataclass(frozen=True)
class Rule:
    """What happens to the layers whose path matches `pattern`.

    Attributes:
      pattern: a regular expression for the whole path (`re.fullmatch`), for example `"encoder/.*/mlp/.*"`. A path is
        the names of attributes, or positions in lists, that lead from the model to the layer, joined by "/"; a model
        that is one layer has the path "".
      num_codebooks: C of each layer's op; None: one for every 16 features that one multiplication sees.
      skip: leave these layers as they are.
      config: how their ops are learned.
      product: what takes the layer's place: look-ups, `"codes"`; or for comparison, and where a plan finds it faster,
        `"int8"` (dynamic) or `"low rank"`, to which none of the following applies but `share`.
      rank: of `"low rank"`; None: an eighth of the lesser of features and outputs.
      conv: convolutions encode each position once and share the codes among the taps (`"shared"`), or encode whole
        patches (`"patches"`); `"auto"` takes what has the smaller error on rows held out.
      share: layers of one parent that read the same array, as query, key and value do, share one op, whose codes are
        found once. With `num_codebooks` of that rule.
      exact_rows: the share of the rows that stay exact: in every example those farthest from the mean of what the layer
        sees, in standard deviations of its features. Look-ups are then learned from the others. Costs that share of the
        exact product, and the kernel stays beside the tables.
      num_candidates: for a convolution of which only the maximum over all positions is used, through functions that
        do not
        decrease, such as ReLU: the layer returns that maximum alone, as a single position. Look-ups propose so many
        positions for each output, and exact products decide between them; 0: look-ups decide. None: all positions.
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

    def __post_init__(self) -> None:
        validate.kind(self.pattern, str, "pattern")
        validate.kind(self.config, FitConfig, "config")
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(
                f"`pattern` {self.pattern!r} is not a regular expression: {error}. A glob's `*` is written `.*`."
            ) from error
        if self.num_codebooks is not None and (not isinstance(self.num_codebooks, int) or self.num_codebooks < 1):
            raise ValueError(
                f"`num_codebooks` is {self.num_codebooks!r}; expected an integer >= 1, or None for one per 16 features."
            )
        if self.conv not in CONVOLUTIONS:
            raise ValueError(f"`conv` is {self.conv!r}; expected one of: {', '.join(map(repr, CONVOLUTIONS))}.")
        if not 0 <= self.exact_rows < 1:
            raise ValueError(f"`exact_rows` is {self.exact_rows!r}; expected a share, from 0 to less than 1.")
        if self.num_candidates is not None and (not isinstance(self.num_candidates, int) or self.num_candidates < 0):
            raise ValueError(
                f"`num_candidates` is {self.num_candidates!r}; expected a number of positions, 0, or None."
            )

        if self.product not in PRODUCTS:
            raise ValueError(f"`product` is {self.product!r}; expected one of: {', '.join(map(repr, PRODUCTS))}.")
        if self.rank is not None and (not isinstance(self.rank, int) or self.rank < 1):
            raise ValueError(f"`rank` is {self.rank!r}; expected an integer >= 1, or None.")
        if self.product != CODES and self.needs_kernel:
            raise ValueError(
                f"`product` {self.product!r} knows neither `exact_rows` nor `num_candidates`. Leave them out."
            )

    @property
    def needs_kernel(self) -> bool:
        """Whether the layer needs its kernel beside the tables."""
        return bool(self.exact_rows) or self.num_candidates is not None

    def size(self, shape: tuple[int, int]) -> int:
        """C, or the rank, or 0 for int8, for a product [D, M]."""
        if self.product == CODES:
            return self.codebooks(shape[0])
        return 0 if self.product == INT8 else min(self.rank or max(1, min(shape) // 8), *shape)

    def codebooks(self, num_features: int) -> int:
        """C for a product of so many features: never more than one per feature."""
        return min(self.num_codebooks or max(1, num_features // 16), num_features)


def validated_rules(rules: Rule | Sequence[Rule]) -> tuple[Rule, ...]:
    """`rules` as a tuple; a single rule is a list of one."""
    rules = (rules,) if isinstance(rules, Rule) else tuple(rules)
    for rule in rules:
        validate.kind(rule, Rule, "rules")
    if not rules:
        raise ValueError("`rules` is empty, so no layer would be replaced. Pass `[Rule('.*')]` for all of them.")
    return rules


def first_match(rules: Sequence[Rule], *paths: str) -> Rule | None:
    """The first rule whose pattern matches the whole of a path; a layer that is in several places has several.

    Example:
      >>> rules = [Rule("head", skip=True), Rule(".*", num_codebooks=4)]
      >>> first_match(rules, "head").skip, first_match(rules, "body/0").num_codebooks
      (True, 4)
    """
    return next((rule for rule in rules if any(re.fullmatch(rule.pattern, path) for path in paths)), None)


def decide(layers: Sequence[Layer], rules: Sequence[Rule]) -> list[tuple[Layer, Rule]]:
    """The layers that are replaced, each with its rule."""
    found = [(layer, first_match(rules, layer.path, *layer.others)) for layer in layers if not layer.reason]
    return [(layer, rule) for layer, rule in found if rule is not None and not rule.skip]
