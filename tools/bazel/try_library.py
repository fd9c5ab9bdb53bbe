"""Calls a kernel of the library that Bazel built through JAX, and compares the codes with those of pure JAX.

python tools/bazel/try_library.py libjax_maddness_ffi.so
"""

from __future__ import annotations

import ctypes
import sys

import jax
import jax.numpy as jnp
import numpy as np

from jax_maddness import SplitTrees


def main() -> None:
    """Fails if the library does not load, or if it encodes differently."""
    library = ctypes.CDLL(sys.argv[1])
    handler = library["_ZN12jax_maddness14encode_handlerEP17XLA_FFI_CallFrame"]  # the handlers are C++ functions
    jax.ffi.register_ffi_target("encode_of_bazel", jax.ffi.pycapsule(handler), platform="cpu")
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((1, 77, 37), np.float32))
    indices = jnp.asarray(rng.integers(0, 37, (1, 5, 4), np.int32))
    thresholds = jnp.asarray(rng.standard_normal((1, 5, 15), np.float32))
    codes = jax.ffi.ffi_call("encode_of_bazel", jax.ShapeDtypeStruct((1, 77, 5), np.uint8))(x, indices, thresholds)
    np.testing.assert_array_equal(codes, SplitTrees.definition(x, indices, thresholds))
    print("The library that Bazel built encodes as pure JAX does.")


if __name__ == "__main__":
    main()
