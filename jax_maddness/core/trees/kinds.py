"""The kinds of split trees: one entry each. Everything that differs between them is a method of their class."""

from __future__ import annotations

from jax_maddness.core.trees.base import Trees
from jax_maddness.core.trees.oblique_trees import ObliqueTrees
from jax_maddness.core.trees.split_trees import SplitTrees

KINDS: tuple[type[Trees], ...] = (SplitTrees, ObliqueTrees)
"""All kinds of split trees, in the order of their versions in files."""
TREE_KINDS: dict[str, type[Trees]] = {kind.__name__: kind for kind in KINDS}
"""The kinds by the names of their classes, which files and modules store."""
