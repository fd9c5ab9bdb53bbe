"""Fingerprints: short texts that differ where something that decides the result of a run does.

`finetune` and `plan` write them beside their state, and resume it only if all of them are equal: shapes alone do not
tell one model from another. Functions that JAX traces are known by their traced program, with all constants in it, so
that a helper or a value of a closure counts, too. Others are known by their bytecode (`of_function`).
"""

from __future__ import annotations

import dataclasses
import dis
import functools
import hashlib
import platform
import re
import types
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from typing import Any

import jax
import numpy as np
from jax.extend import core

_DIGEST = "blake2b:"
"""Prefix of fingerprints that mean nothing to people."""
_ADDRESS = re.compile(r"0x[0-9a-f]+")
"""Addresses in the text of a program, as of the functions of host callbacks: they differ from process to process."""


def versions(*, python: bool = False) -> dict[str, str]:
    """Returns the versions of this package and of JAX, and of Python where bytecode is compared."""
    found = {"version of jax_maddness": metadata.version("jax_maddness"), "version of jax": jax.__version__}
    return found | ({"version of Python": ".".join(platform.python_version_tuple()[:2])} if python else {})


def of_arrays(arrays: Mapping[str, Any]) -> str:
    """Returns the fingerprint of a model's arrays by place: their names, dtypes, shapes and bytes."""
    digest = _Digest()
    for place in sorted(arrays):
        digest.text(place)
        digest.leaf(arrays[place])
    return digest.result()


def of_batches(batches: Iterable[Any]) -> str:
    """Returns the fingerprint of batches: their number, structures, dtypes, shapes and bytes."""
    digest = _Digest()
    for batch in batches:
        leaves, structure = jax.tree.flatten(batch)
        digest.text(f"batch {structure}")
        for leaf in leaves:
            digest.leaf(leaf)
    return digest.result()


def of_program(function: Callable[..., Any], *args: Any) -> tuple[str, Any]:
    """Returns the fingerprint of a function as JAX traces it, and the shapes of what it returns.

    The Python code behind host callbacks is not seen.

    Args:
      function: of arrays.
      args: pytrees; only their shapes and dtypes count.
    """
    program, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    digest = _Digest()
    digest.text(_ADDRESS.sub("", str(program)))
    digest.constants(program.jaxpr, program.consts)
    return digest.result(), shapes


def of_function(function: Any) -> str:
    """Returns the fingerprint of a function that JAX does not trace: its bytecode, defaults and closure.

    Numbers, strings, arrays and tuples of them count in closures and globals, and so do functions of the same module.
    Lists, dicts and other objects that may change from call to call, values that the function itself assigns, and the
    code of other modules do not.
    """
    digest = _Digest()
    digest.value(function)
    return digest.result()


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Returns in words what differs between two fingerprints by name, "" if nothing does."""
    words = []
    for name in dict.fromkeys([*before, *now]):
        old, new = before.get(name, "not recorded"), now.get(name, "not given")
        if old != new:
            readable = not (old.startswith(_DIGEST) or new.startswith(_DIGEST))
            words.append(f"{name} ({old} there, {new} here)" if readable else name)
    return ", ".join(words)


class _Digest:
    """A digest of values of any kind."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)
        self._seen: set[int] = set()

    def result(self) -> str:
        return _DIGEST + self._hash.hexdigest()

    def text(self, text: str) -> None:
        """Adds a text, with its length, so that no two sequences of texts are alike."""
        encoded = text.encode()
        self._hash.update(f"{len(encoded)}:".encode() + encoded)

    def leaf(self, a: Any) -> None:
        """Adds an array, or the representation of a Python number or string, or else a type."""
        if not _is_array(a):
            self.text(repr(a) if isinstance(a, str | bytes | int | float | complex | None) else str(type(a)))
            return
        self.text(f"{a.dtype}{list(a.shape)}")
        if isinstance(a, jax.ShapeDtypeStruct):
            return
        if isinstance(a, jax.Array) and jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a = jax.random.key_data(a)
        array = np.ascontiguousarray(a)
        if array.dtype.hasobject:
            self.text(repr(array))
        else:
            self._hash.update(array.reshape(-1).view(np.uint8).data)

    def constants(self, program: Any, constants: Iterable[Any]) -> None:
        """Adds the values of all constants of a traced program: its text has their shapes alone."""
        for constant in constants:
            self.leaf(constant)
        for equation in program.eqns:
            for operand in equation.invars:
                if isinstance(operand, core.Literal):
                    self.leaf(operand.val)
            for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_program):
                if isinstance(inner, core.ClosedJaxpr):
                    self.constants(inner.jaxpr, inner.consts)
                elif isinstance(inner, core.Jaxpr):
                    self.constants(inner, ())

    def value(self, value: Any) -> None:
        """Adds a value that a function refers to; see `of_function`."""
        if id(value) in self._seen:
            return
        if isinstance(value, str | bytes | int | float | complex | None) or _is_array(value):
            self.leaf(value)
        elif isinstance(value, tuple | frozenset):
            self.text(f"{type(value).__name__} of {len(value)}")
            for item in value if isinstance(value, tuple) else sorted(value, key=repr):
                self.value(item)
        else:
            self._seen.add(id(value))
            self._object(value)

    def _object(self, value: Any) -> None:
        if isinstance(value, functools.partial):
            self.value((value.func, value.args, tuple(sorted(value.keywords.items()))))
        elif isinstance(value, types.MethodType):
            self.value((value.__func__, value.__self__))
        elif isinstance(value, types.CodeType):
            self.text(value.co_code.hex())
            self.value((value.co_names, value.co_varnames, value.co_freevars, value.co_consts))
        elif isinstance(value, types.FunctionType):
            self._function(value)
        elif callable(getattr(value, "__wrapped__", None)):  # jax.jit and other decorators
            self.value(value.__wrapped__)
        elif isinstance(value, type | types.ModuleType | types.BuiltinFunctionType):
            self.text(f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', value.__name__)}")
        else:
            self._instance(value)

    def _function(self, function: types.FunctionType) -> None:
        code = function.__code__
        self.value((code, function.__defaults__, tuple(sorted((function.__kwdefaults__ or {}).items()))))
        assigned = _assigned(code)
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            if name not in assigned:
                try:
                    self.value(cell.cell_contents)
                except ValueError:  # a name that is not bound yet
                    continue
        for name in sorted(_names(code) - assigned):
            value = function.__globals__.get(name)
            same_module = getattr(value, "__module__", None) == function.__module__
            if not isinstance(value, types.FunctionType) or same_module:
                self.value(value)
            else:
                self.text(f"{value.__module__}.{value.__qualname__}")

    def _instance(self, value: Any) -> None:
        self.value(type(value))
        call = vars(type(value)).get("__call__")
        if isinstance(call, types.FunctionType):
            self.value(call)
        parameters = getattr(value, "__dataclass_params__", None)
        if parameters is not None and parameters.frozen:
            self.value(tuple(getattr(value, field.name) for field in dataclasses.fields(value)))
        elif not isinstance(value, list | dict | set):  # a model, perhaps
            for leaf in jax.tree.leaves(value):
                if _is_array(leaf):
                    self.leaf(leaf)


def _is_array(value: Any) -> bool:
    """Whether a value is an array, of another library perhaps; NumPy's module and types have `dtype`s, too."""
    known = isinstance(value, np.ndarray | np.generic | jax.Array | jax.ShapeDtypeStruct)
    return known or (hasattr(value, "__array__") and isinstance(getattr(value, "shape", None), tuple))


def _is_program(value: Any) -> bool:
    return isinstance(value, core.ClosedJaxpr | core.Jaxpr)


def _nested(code: types.CodeType) -> Iterable[types.CodeType]:
    """Yields a function's code and that of the functions inside of it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _nested(constant)


def _names(code: types.CodeType) -> set[str]:
    return {name for one in _nested(code) for name in one.co_names}


def _assigned(code: types.CodeType) -> set[str]:
    """Returns the names outside of a function that it assigns, such as counters: they differ from call to call."""
    stores = ("STORE_DEREF", "STORE_GLOBAL")
    return {i.argval for one in _nested(code) for i in dis.get_instructions(one) if i.opname in stores}
