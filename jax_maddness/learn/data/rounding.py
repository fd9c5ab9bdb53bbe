"""Rows to int8 in NumPy, as trees and terms round them in JAX: learning must see what inference sees."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int8

from jax_maddness.core.int8 import LIMIT


def rounded(
    x: Float[np.ndarray, "rows features"], center: Float[np.ndarray, " features"], scale: Float[np.ndarray, " features"]
) -> Int8[np.ndarray, "rows features"]:
    """Rounds finite rows to `clip(rint((x - center) * scale), -127, 127)`."""
    return np.clip(np.rint((x - center) * scale), -LIMIT, LIMIT).astype(np.int8)
