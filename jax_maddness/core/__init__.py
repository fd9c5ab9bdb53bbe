"""The operations and their data types. Raises ImportError if JAX is too old, before a file uses what it lacks."""

import re

import jax

_OLDEST = (0, 8, 3)  # as in pyproject.toml


def require(name: str, version: str, oldest: tuple[int, ...], install: str) -> None:
    """Raises an ImportError that says what to install, if the `version` of package `name` is older than `oldest`."""
    if tuple(map(int, re.findall(r"\d+", version)[:3])) < oldest:
        raise ImportError(
            f"jax_maddness needs {name} >= {_dotted(oldest)}, but {version} is installed: pip install -U {install}"
        )


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


for _name, _version in (("jax", jax.__version__), ("jaxlib", jax.lib.__version__)):
    require(_name, _version, _OLDEST, f"'jax>={_dotted(_OLDEST)}' 'jaxlib>={_dotted(_OLDEST)}'")
