"""The registry of forms. A file names the form of a layer by its class."""

from __future__ import annotations

from jax_maddness.nn.layers.contraction import AxisContraction, Contraction
from jax_maddness.nn.layers.convolution import Convolution
from jax_maddness.nn.layers.form import Form

FORMS: tuple[type[Form], ...] = (Contraction, AxisContraction, Convolution)
