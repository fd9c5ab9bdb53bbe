"""save_model / load_model: a model with look-ups in place of layers as one versioned file.

A file like that of `save` (`core/archive.py`): its header also says what was replaced and how (the specs), and the
place of every array in the model. The code of the model is not in it: `load_model` wants a model of the same
architecture, whose values do not matter.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx
from flax.traverse_util import unflatten_dict

from jax_maddness.core import archive
from jax_maddness.nn.layers.approximate import Spec
from jax_maddness.nn.layers.exact_kernel import PREFIX
from jax_maddness.nn.layers.forms import FORMS
from jax_maddness.nn.models.linen_model import Replaced, flat
from jax_maddness.nn.models.nnx_model import Approximate, Tables, stand_ins, with_modules, with_widths

FORMAT = "jax_maddness.model"
VERSION = 3
"""Version 3 renamed a field of `Spec` and the arrays of an `ExactKernel`; older files are read with the new names."""
_FORMS = {form.__name__: form for form in FORMS}
_SIGNED, _UNSIGNED = (tuple(f"{kind}{bits}" for bits in (8, 16, 32, 64)) for kind in ("int", "uint"))
_OLD_FIELD, _OLD_PREFIX = "maximum", "checked_"
_DTYPES = ("bool", *_SIGNED, *_UNSIGNED, "float16", "bfloat16", "float32", "float64")
Place = tuple[Any, ...]


def save_model(path: str | os.PathLike[str], model: Any) -> None:
    """Writes a model that `replace` returned to the file `path`, whole or not at all.

    All of its arrays are written: the ops', and those of the layers that stayed.

    Args:
      path: where to.
      model: an `nnx.Module`, or `(module, variables)` of linen.

    Raises:
      TypeError: `model` is none of these.
      ValueError: none of its layers is replaced.
    """
    kind, specs, found = take_apart(model)
    if not specs:
        raise ValueError("No layer of `model` is replaced. Pass what `replace` returned; orbax saves other models.")
    values = [np.asarray(jax.device_get(_without_key(array))) for array in found.values()]
    static = {
        "kind": kind,
        "specs": {path: _to_json(spec) for path, spec in specs.items()},
        "places": [list(place) for place in found],
        "keys": [_key_kind(array) for array in found.values()],
    }
    archive.write(path, FORMAT, VERSION, static, {str(i): array for i, array in enumerate(values)})


def load_model(path: str | os.PathLike[str], model: Any) -> Any:
    """Reads a model that `save_model` wrote.

    Args:
      path: where from.
      model: one of the same architecture without replacements; its values do not matter. For nnx it may be abstract,
        `nnx.eval_shape(lambda: Model(rngs=nnx.Rngs(0)))`; for linen it is the module alone.

    Returns:
      What was saved: an `nnx.Module`, or `(module, variables)`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is damaged, newer, or of another model; the message says which.
    """
    header, specs, arrays = archive.read(path, FORMAT, VERSION, "a model", _read, _DTYPES)
    values = [_with_key(jnp.asarray(array), key) for array, key in zip(arrays, header["keys"], strict=True)]
    found = dict(zip(map(tuple, header["places"]), values, strict=True))
    if header["kind"] == "linen":
        if not isinstance(model, linen.Module):
            raise ValueError(f"{os.fspath(path)!r} is a linen model; `model` must be its module, without variables.")
        return Replaced(model, tuple(specs.items())), unflatten_dict(found)
    if not isinstance(model, nnx.Module):
        raise ValueError(f"{os.fspath(path)!r} is an nnx model; `model` must be an nnx.Module.")
    return _assemble(model, specs, found)


def take_apart(model: Any) -> tuple[str, dict[str, Spec], dict[Place, Any]]:
    """The kind of model, its specs by path, its arrays by place."""
    if isinstance(model, nnx.Module):
        modules = {"/".join(map(str, path)): module for path, module in nnx.iter_modules(model)}
        specs = {path: module.spec for path, module in modules.items() if isinstance(module, Approximate)}
        return "nnx", specs, {tuple(place): v.get_value() for place, v in nnx.to_flat_state(nnx.state(model))}
    if isinstance(model, tuple) and len(model) == 2 and isinstance(model[0], linen.Module):
        specs = dict(model[0].specs) if isinstance(model[0], Replaced) else {}
        return "linen", specs, {**flat(linen.meta.unbox(model[1]))}
    raise TypeError(f"`model` is {type(model).__name__}; expected an nnx.Module, or a linen module and variables.")


def _assemble(model: nnx.Module, specs: dict[str, Spec], found: dict[Place, Any]) -> nnx.Module:
    """`model` with the layers of `specs` replaced, and the values that were found."""
    tables = {spec.owner: Tables({}) for spec in specs.values()}
    for path, spec in specs.items():
        for place in found:
            if "/".join(map(str, place[:-3])) == path and place[-3:-1] == ("tables", "arrays"):
                tables[spec.owner].add(str(place[-1]), found[place])
    made = with_modules(model, stand_ins(specs, tables))
    graph, state = nnx.split(made)
    variables = dict(nnx.to_flat_state(state))
    fits = _fits_pruned if any(spec.pruned for spec in specs.values()) else _fits
    wrong = [p for p in variables.keys() & found.keys() if not fits(found[p].shape, variables[p].get_value().shape)]
    if wrong or variables.keys() != found.keys():
        different = sorted("/".join(map(str, place)) for place in {*wrong, *(variables.keys() ^ found.keys())})
        raise ValueError(f"The file is of another model: {different} differ. Pass one of the same architecture.")
    filled = [(place, v.replace(found[place])) for place, v in variables.items()]
    return with_widths(nnx.merge(graph, nnx.from_flat_state(filled)))


def _fits(shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    return tuple(shape) == tuple(expected)


def _fits_pruned(shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Features of layers that stayed may have been left out."""
    return len(shape) == len(expected) and all(a <= b for a, b in zip(shape, expected, strict=True))


def _read(header: dict[str, Any], read: archive.Reader) -> tuple[dict[str, Any], dict[str, Spec], list[np.ndarray]]:
    arrays = read()
    if header["version"] < 3:
        header = _with_new_names(header)
    specs = {where: _from_json(spec) for where, spec in header["specs"].items()}
    return header, specs, [arrays[str(i)] for i in range(len(header["places"]))]


def _with_new_names(header: dict[str, Any]) -> dict[str, Any]:
    """The header of a file of version 1 or 2 with the names of version 3."""
    new = {_OLD_FIELD: "num_candidates"}
    specs = {
        path: {new.get(field, field): value for field, value in spec.items()} for path, spec in header["specs"].items()
    }
    places = [
        [PREFIX + key[len(_OLD_PREFIX) :] if str(key).startswith(_OLD_PREFIX) else key for key in place]
        for place in header["places"]
    ]
    return {**header, "specs": specs, "places": places}


def _to_json(spec: Spec) -> dict[str, Any]:
    return {**dataclasses.asdict(spec), "form": [type(spec.form).__name__, dataclasses.asdict(spec.form)]}


def _from_json(described: dict[str, Any]) -> Spec:
    name, fields = described["form"]
    return Spec(**{**_tuples(described), "form": _FORMS[name](**_tuples(fields))})


def _tuples(value: Any) -> Any:
    """Lists as tuples again, at any depth."""
    if isinstance(value, dict):
        return {key: _tuples(v) for key, v in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _key_kind(array: Any) -> str | None:
    """The implementation of a PRNG key; None for other arrays."""
    return str(jax.random.key_impl(array)) if jnp.issubdtype(array.dtype, jax.dtypes.prng_key) else None


def _without_key(array: Any) -> Any:
    return jax.random.key_data(array) if _key_kind(array) else array


def _with_key(array: jax.Array, kind: str | None) -> jax.Array:
    return jax.random.wrap_key_data(array, impl=kind) if kind else array
