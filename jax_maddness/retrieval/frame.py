"""The frame of an index: the origin and the power of two by which vectors are shifted and scaled before they are coded.

Prototypes are learned from numbers near 1, whatever the units of the vectors are. A distance does not change when
vectors and queries are shifted alike; without the shift, `|q|^2 - 2 q.v + |v|^2` would cancel, as for positions on
earth in meters. Everything here runs on the host in float64, in blocks of rows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jax_maddness.retrieval.powers import exponent_of

BLOCK = 4096
"""Number of rows that are in memory in float64 at once."""
_REACH = 1e6
"""Greatest magnitude in the frame that is encoded; only vectors that are added to an index later can be beyond it."""


class Frame(NamedTuple):
    """A vector `v` is encoded as `(v - origin) / 2**exponent`.

    Attributes:
      origin: the mean vector for "l2"; None: zeros.
      exponent: the exponent of the largest magnitude of a shifted vector; 0 for "cosine", whose vectors have length 1.
    """

    origin: Float[np.ndarray, " features"] | None
    exponent: int


def frame_of(rows: Float[np.ndarray, "vectors features"], metric: str) -> Frame:
    """Returns the frame in which `rows`, float32, are encoded for `metric`."""
    if metric == "cosine":
        return Frame(None, 0)
    if metric == "ip":
        return Frame(None, exponent_of(rows))
    origin = rows.mean(0, dtype=np.float64).astype(np.float32)
    return Frame(origin, max(exponent_of(rows[at : at + BLOCK] - origin.astype(np.float64)) for at in _starts(rows)))


def unit(rows: Float[np.ndarray, "rows features"]) -> Float[np.ndarray, "rows features"]:
    """Returns rows of length 1 in float64; rows of length zero stay zeros.

    Example:
      >>> unit(np.float32([[3e-30, 4e-30], [0, 0]])).round(6).tolist()
      [[0.6, 0.8], [0.0, 0.0]]
    """
    rows = rows.astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1.0)


def unit32(rows: Float[np.ndarray, "rows features"]) -> Float[np.ndarray, "rows features"]:
    """Returns rows of length 1, computed in float64 and rounded to float32."""
    return np.concatenate([np.float32(unit(rows[at : at + BLOCK])) for at in _starts(rows)] or [np.float32(rows)])


def in_frame(rows: Float[np.ndarray, "rows features"], metric: str, frame: Frame) -> Float[np.ndarray, "rows features"]:
    """Returns vectors or queries in the frame, in float64."""
    if metric == "cosine":
        return unit(rows)
    shifted = rows.astype(np.float64)  # np.float64(rows) would be a scalar for a single number, with older NumPys
    if frame.origin is not None:
        shifted -= frame.origin.astype(np.float64)
    return np.ldexp(shifted, -frame.exponent)


def augmented(
    rows: Float[np.ndarray, "vectors features"], bias: Float[np.ndarray, " vectors"] | None, metric: str, frame: Frame
) -> Float[np.ndarray, "vectors features+1"]:
    """Returns vectors in the frame, with the number that is added to their products as one more feature.

    For "l2" this is minus half the squared length, for "ip" the bias in units of the frame, otherwise zero.
    """
    result = np.zeros((len(rows), rows.shape[1] + 1), np.float32)
    for at in _starts(rows):
        block = np.clip(in_frame(rows[at : at + BLOCK], metric, frame), -_REACH, _REACH)
        result[at : at + BLOCK, :-1] = block
        if metric == "l2":
            result[at : at + BLOCK, -1] = -np.einsum("vd,vd->v", block, block) / 2
    if bias is not None:
        result[:, -1] = np.ldexp(bias.astype(np.float64), -frame.exponent)
    return result


def _starts(rows: np.ndarray) -> range:
    return range(0, len(rows), BLOCK)
