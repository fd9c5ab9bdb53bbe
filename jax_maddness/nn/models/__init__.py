"""One view of nnx and linen models. Raises ImportError if Flax is too old, before a file uses what it lacks."""

import flax

from jax_maddness.core import require

_OLDEST = (0, 12, 2)  # as in pyproject.toml, whose bound pip ignores where Flax is installed without the extra
require("flax", flax.__version__, _OLDEST, "'jax_maddness[flax]'")
