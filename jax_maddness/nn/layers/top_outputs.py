"""Output layers whose greatest outputs are exact: look up, then rescore. The arrays of the layer's index, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax_maddness.nn.layers.form import Form
from jax_maddness.retrieval.build import build_index
from jax_maddness.retrieval.index import VectorIndex
from jax_maddness.retrieval.quantizer import Quantizer
from jax_maddness.retrieval.rescore import FLOATS
from jax_maddness.retrieval.top_outputs import with_exact_top


def learn_top_outputs(
    rows: Float[np.ndarray, "rows features"],
    w: Float[np.ndarray, "features outputs"],
    bias: Float[np.ndarray, " outputs"],
    num_codebooks: int,
) -> dict[str, Array]:
    """Builds an index over the outputs of a layer; returns its arrays by name, as modules hold them."""
    index = build_index(w.T, num_codebooks, bias=bias if bias.any() else None, queries=rows, progress=False)
    scale = np.float32(2.0**index.exponent)  # a power of two: exact, and the layer needs no exponent
    quantizer = index.quantizer
    arrays = {
        "codes": index.codes,
        "prototypes": quantizer.prototypes * scale,
        "constants": quantizer.constants * scale,
        "center": quantizer.center * scale,
        "vectors": index.vectors,
        "bias": index.bias,
    }
    return {name: array for name, array in arrays.items() if array is not None}


def top_outputs(x: Array, form: Form, arrays: Mapping[str, Any], top: int, num_candidates: int) -> Array:
    """Computes all outputs of a layer, the `top` greatest exactly.

    Args:
      x: the layer's input, in the dtype in which it computes.
      form: the layer's form, with one group.
      arrays: as `learn_top_outputs` returns them.
      top: number of outputs that are exact.
      num_candidates: number of candidates for them.

    Returns:
      The outputs, [*row_shape, outputs], in the dtype of `x`.
    """
    prototypes, vectors = arrays["prototypes"], arrays["vectors"]
    vectors = vectors if vectors.dtype in FLOATS else vectors.astype(jnp.float32)
    # What encodes further vectors plays no part in a search.
    no_encoder = jnp.zeros((*prototypes.shape[:2], prototypes.shape[2] + 1), jnp.float32)
    index = VectorIndex(
        codes=arrays["codes"],
        quantizer=Quantizer(prototypes, arrays["constants"], no_encoder, arrays["center"]),
        ids=jnp.arange(len(vectors), dtype=jnp.int32),
        bias=arrays.get("bias"),
        vectors=vectors,
        trees=None,
        metric="ip",
        capacity=len(vectors),
    )
    candidates = min(num_candidates, len(vectors))
    return form.map_rows(lambda rows: with_exact_top(jnp.squeeze(rows, -2), index, min(top, candidates), candidates), x)
