"""The operations and their data types. Raises ImportError if JAX is too old, before a file uses what it lacks."""

import re

import jax

_OLDEST = (0, 8, 3)  # as in pyproject.toml

for _name, _version in (("jax", jax.__version__), ("jaxlib", jax.lib.__version__)):
    if tuple(map(int, re.findall(r"\d+", _version)[:3])) < _OLDEST:
        _least = ".".join(map(str, _OLDEST))
        raise ImportError(
            f"jax_maddness needs {_name} >= {_least}, but {_version} is installed: "
            f"pip install -U 'jax>={_least}' 'jaxlib>={_least}'"
        )
