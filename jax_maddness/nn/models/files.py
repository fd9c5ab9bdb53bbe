"""save_model / load_model: a model with look-ups in place of layers as one versioned file.

The file is like that of `save` (`core/archive.py`). Its header also has the specs of the replaced layers, and the place
of every array in the model. It does not have the model's code: `load_model` takes a model of the same architecture,
whose values do not matter.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_maddness.core import archive
from jax_maddness.core.restore import restored
from jax_maddness.core.terms.kinds import TERMS
from jax_maddness.core.trees.base import validate_finite
from jax_maddness.core.types import TREE_KINDS
from jax_maddness.nn.layers.approximate import Spec
from jax_maddness.nn.layers.exact_kernel import PREFIX
from jax_maddness.nn.layers.forms import FORMS
from jax_maddness.nn.models.model import MODELS, adapt
from jax_maddness.nn.models.view import Model

FORMAT = "jax_maddness.model"
VERSION = 4
"""Version 3 renamed a field of `Spec` and the arrays of an `ExactKernel`; older files are read with the new names.
Version 4 added `Spec.keeps_kernel`, the form `AxisContraction`, and top outputs of tables of embeddings, which have no
vectors beside the table."""
_FORMS = {form.__name__: form for form in FORMS}
_SIGNED, _UNSIGNED = (tuple(f"{kind}{bits}" for bits in (8, 16, 32, 64)) for kind in ("int", "uint"))
_OLD_FIELD, _OLD_PREFIX = "maximum", "checked_"
_FINITE = ("tables_", "weights")
_Place = tuple[int | str | tuple[int | str, ...], ...]
"""Names and positions; those of variables that `WeightNorm` and its like hold are tuples."""
_DTYPES = ("bool", *_SIGNED, *_UNSIGNED, "float16", "bfloat16", "float32", "float64")


def save_model(path: str | os.PathLike[str], model: Any) -> None:
    """Writes a model that `replace` returned to the file `path`, whole or not at all.

    The file contains all of the model's arrays: those of the ops, and those of the layers that stayed.

    Args:
      path: the file to write.
      model: an `nnx.Module`, or `(module, variables)` of linen.

    Raises:
      TypeError: `model` is neither.
      ValueError: None of its layers is replaced, or a value of their ops is not finite or out of its range.

    Example:
      See `load_model`.
    """
    adapted = adapt(model)
    specs = adapted.specs()
    if not specs:
        raise ValueError("No layer of `model` is replaced. Pass what `replace` returned; orbax saves other models.")
    arrays = adapted.file_arrays()
    _validate_ops(adapted)
    values = [np.asarray(jax.device_get(_without_key(array))) for array in arrays.values()]
    static = {
        "kind": adapted.kind,
        "specs": {layer: _to_json(spec) for layer, spec in specs.items()},
        "places": [list(place) for place in arrays],
        "keys": [_key_kind(array) for array in arrays.values()],
    }
    archive.write(path, FORMAT, VERSION, static, {str(i): array for i, array in enumerate(values)})


def load_model(path: str | os.PathLike[str], model: Any) -> Any:
    """Reads a model that `save_model` wrote.

    Args:
      path: the file to read.
      model: a model of the same architecture without replacements; its values do not matter. For nnx it may be
        abstract, `nnx.eval_shape(lambda: Model(rngs=nnx.Rngs(0)))`; for linen it is the module alone.

    Returns:
      The model that was saved: an `nnx.Module`, or `(module, variables)`.

    Raises:
      FileNotFoundError: There is no such file.
      ValueError: The file is damaged, newer, or of another model; the message says which.

    Example:
      >>> import os, tempfile
      >>> from flax import nnx
      >>> from jax_maddness import Rule, replace
      >>> model = nnx.Linear(8, 2, rngs=nnx.Rngs(0))
      >>> fast = replace(model, Rule(".*", product="int8"), [jnp.ones((4, 8))])
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save_model(os.path.join(folder, "fast.model"), fast)
      ...     loaded = load_model(os.path.join(folder, "fast.model"), model)
      >>> bool((loaded(jnp.ones((4, 8))) == fast(jnp.ones((4, 8)))).all())
      True
    """
    kind, specs, by_place = archive.read(path, FORMAT, VERSION, "a model", _read, _DTYPES)
    loaded = kind.from_file(model, specs, by_place, os.fspath(path))
    try:
        _validate_ops(adapt(loaded))
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)!r} cannot be loaded as a model: {error}") from None
    return loaded


def _validate_ops(model: Model) -> None:
    """Raises ValueError unless the values in all ops' arrays are in their documented ranges."""
    arrays, spec_of = model.arrays(), {spec.owner: spec for spec in model.specs().values()}
    for owner, places in model.op_places().items():
        kind = TREE_KINDS.get(spec_of[owner].trees)
        op = {name: np.asarray(jax.device_get(arrays[place])) for name, place in places.items()}
        try:
            for name, array in op.items():
                if jnp.issubdtype(array.dtype, jnp.floating) and name.startswith(_FINITE):
                    validate_finite(name, array.astype(np.float32))
            if kind is None:
                continue
            _validate_copy(op)
            trees = {name: op[f"trees_{name}"] for name in kind.array_names()}
            limit = kind.validate_values(trees, spec_of[owner].num_features)
            for term in TERMS:
                arrays_of_term = {f: op[f"{term.name}_{f}"] for f in term.array_names() if f"{term.name}_{f}" in op}
                if arrays_of_term:
                    term.validate_values(arrays_of_term, limit, op["tables_values"].shape[-2])
        except ValueError as error:
            raise ValueError(f"the op {owner!r}: {error}") from None


def _validate_copy(op: Mapping[str, np.ndarray]) -> None:
    """Raises ValueError unless the tables for small batches, if there are any, hold the entries of the others."""
    if "tables_by_code" in op and not np.array_equal(op["tables_by_code"], np.moveaxis(op["tables_values"], -3, -1)):
        raise ValueError("`tables_by_code` is no copy of `tables_values`.")


def _read(
    header: dict[str, Any], read: archive.Reader
) -> tuple[type[Model], dict[str, Spec], dict[tuple[Any, ...], jax.Array]]:
    arrays = read()
    if header["version"] < 3:
        header = _with_new_names(header)
    kinds = {kind.kind: kind for kind in MODELS}
    if (kind := kinds.get(restored(str, header.get("kind"), "kind"))) is None:
        raise ValueError(f"its kind of model is {header['kind']!r}; expected one of {', '.join(kinds)}.")
    specs = {layer: _from_json(spec, layer) for layer, spec in header["specs"].items()}
    places = restored(tuple[_Place, ...], header.get("places"), "places")
    keys = restored(tuple[str | None, ...], header.get("keys"), "keys")
    if not len(arrays) == len(keys) == len(places) == len(set(places)):
        raise ValueError(f"it has {len(arrays)} arrays, {len(keys)} keys and {len(set(places))} different places.")
    in_order = [jnp.asarray(arrays[str(i)]) for i in range(len(arrays))]
    values = [_with_key(array, key) for array, key in zip(in_order, keys, strict=True)]
    return kind, specs, dict(zip(places, values, strict=True))


def _with_new_names(header: dict[str, Any]) -> dict[str, Any]:
    """Converts the header of a file of version 1 or 2 to the names of version 3."""
    new = {_OLD_FIELD: "num_candidates"}
    specs = {
        layer: {new.get(field, field): value for field, value in spec.items()}
        for layer, spec in header["specs"].items()
    }
    places = [
        [PREFIX + key[len(_OLD_PREFIX) :] if str(key).startswith(_OLD_PREFIX) else key for key in place]
        for place in header["places"]
    ]
    return {**header, "specs": specs, "places": places}


def _to_json(spec: Spec) -> dict[str, Any]:
    return {**dataclasses.asdict(spec), "form": [type(spec.form).__name__, dataclasses.asdict(spec.form)]}


def _from_json(described: Any, layer: str) -> Spec:
    name, fields = restored(tuple[str, dict[str, Any]], described.get("form"), "form")
    if name not in _FORMS:
        raise ValueError(f"its form of the layer {layer!r} is {name!r}; expected one of {', '.join(_FORMS)}.")
    return restored(Spec, {**described, "form": restored(_FORMS[name], fields, "form")}, layer)


def _key_kind(array: Any) -> str | None:
    """Returns the implementation of a PRNG key; None for other arrays."""
    return str(jax.random.key_impl(array)) if jnp.issubdtype(array.dtype, jax.dtypes.prng_key) else None


def _without_key(array: Any) -> Any:
    return jax.random.key_data(array) if _key_kind(array) else array


def _with_key(array: jax.Array, kind: str | None) -> jax.Array:
    return jax.random.wrap_key_data(array, impl=kind) if kind else array
