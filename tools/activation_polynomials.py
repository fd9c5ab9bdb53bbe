"""The polynomials of xla_ffi/kernels/shared/epilogue.inc: coefficients from the constant on, and their relative error.

    .venv/bin/python tools/activation_polynomials.py

Least squares whose weights are multiplied by the errors, sixty times (Lawson), come near the least greatest error.
"""

from collections.abc import Callable

import numpy as np
from scipy.special import erfcx

STEPS, POINTS = 60, 4000
TAIL = 0.3
"""The tail of the normal distribution is a polynomial of 1 / (1 + TAIL a) times exp(-a^2 / 2)."""


def main() -> None:
    """Prints a line for each polynomial."""
    half = np.log(2) / 2
    show("e^r = 1 + r + r^2 p(r)", fit(exponential, -half, half, 4, lambda r: r * r / np.exp(r)))
    show("tanh v = v + v^3 p(v^2)", fit(hyperbolic_tangent, 1e-6, 0.36, 4, lambda s: s))
    least = 1 / (1 + TAIL * 14)
    show("P(v < -a) = exp(-a^2 / 2) p(t)", fit(normal_tail, least, 1, 8, lambda t: 1 / normal_tail(t)))


def exponential(r: np.ndarray) -> np.ndarray:
    """Returns (e^r - 1 - r) / r^2."""
    small = np.abs(r) < 1e-4
    safe = np.where(small, 1, r)
    return np.where(small, 0.5 + r / 6 + r * r / 24, (np.expm1(safe) - safe) / safe**2)


def hyperbolic_tangent(s: np.ndarray) -> np.ndarray:
    """Returns (tanh(v) / v - 1) / v^2, for s = v^2."""
    v = np.sqrt(s)
    return np.where(s < 1e-5, -1 / 3 + 2 * s / 15, (np.tanh(v) / v - 1) / s)


def normal_tail(t: np.ndarray) -> np.ndarray:
    """Returns the probability of a normal variable below -a over exp(-a^2 / 2), for t = 1 / (1 + TAIL a)."""
    return 0.5 * erfcx((1 / t - 1) / TAIL / np.sqrt(2))


def fit(f: Callable, low: float, high: float, degree: int, weight: Callable) -> tuple[np.ndarray, float]:
    """Returns the coefficients of a polynomial near f on [low, high], and its greatest weighted error."""
    x = (low + high) / 2 + (high - low) / 2 * np.cos(np.pi * (np.arange(POINTS) + 0.5) / POINTS)
    powers, target = np.vander(x, degree + 1, increasing=True) * weight(x)[:, None], f(x) * weight(x)
    shares = np.ones(POINTS)
    for _ in range(STEPS):
        root = np.sqrt(shares)
        coefficients = np.linalg.lstsq(powers * root[:, None], target * root, rcond=None)[0]
        errors = np.abs(powers @ coefficients - target)
        shares *= errors + 1e-30
        shares *= POINTS / shares.sum()
    return coefficients, float(errors.max())


def show(name: str, fitted: tuple[np.ndarray, float]) -> None:
    """Prints the coefficients in float32."""
    coefficients, error = fitted
    print(f"{name}: {', '.join(f'{c:.9g}' for c in coefficients.astype(np.float32))} ({error:.1e})")


if __name__ == "__main__":
    main()
