"""Log-mel spectrograms as Whisper has them: 80 bands, 100 frames a second, windows of 30 seconds."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

RATE = 16_000
"""Samples a second."""
WINDOW = 30 * RATE
"""Number of samples of a window; shorter recordings are followed by silence."""
FFT, HOP, BANDS = 400, 160, 80


def filters(bands: int = BANDS, fft: int = FFT, rate: int = RATE) -> np.ndarray:
    """Returns triangular filters of equal area on Slaney's mel scale, float32 [bands, fft // 2 + 1].

    The scale is linear up to 1 kHz and logarithmic beyond: 15 mels a kHz, then 27 mels for each factor of 6.4.
    """
    top = 15 + 27 * np.log(rate / 2 / 1000) / np.log(6.4)
    mels = np.linspace(0, top, bands + 2)
    hertz = np.where(mels < 15, mels * 200 / 3, 1000 * 6.4 ** ((mels - 15) / 27))
    bins = np.linspace(0, rate / 2, fft // 2 + 1)
    rising = (bins - hertz[:-2, None]) / np.diff(hertz)[:-1, None]
    falling = (hertz[2:, None] - bins) / np.diff(hertz)[1:, None]
    areas = (hertz[2:] - hertz[:-2]) / 2
    return (np.maximum(0, np.minimum(rising, falling)) / areas[:, None]).astype(np.float32)


@jax.jit
def log_mel(samples: jax.Array) -> jax.Array:
    """Maps `samples [samples]` to [bands, samples // HOP].

    The power of frames under a Hann window, centred on every `HOP` samples, summed by `filters`; its logarithm, at most
    8 powers of ten below its maximum, is scaled to about -1 to 1. The signal is mirrored at both ends.
    """
    padded = jnp.pad(samples, FFT // 2, mode="reflect")
    starts = HOP * np.arange(len(samples) // HOP)
    frames = padded[starts[:, None] + np.arange(FFT)]
    hann = np.float32(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FFT) / FFT))
    power = jnp.abs(jnp.fft.rfft(frames * hann)) ** 2
    logarithm = jnp.log10(jnp.maximum(filters() @ power.T, 1e-10))
    return (jnp.maximum(logarithm, logarithm.max() - 8) + 4) / 4
