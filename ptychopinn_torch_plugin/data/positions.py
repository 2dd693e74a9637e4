"""Linear maps of scan positions."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Positions = npt.NDArray[np.float64]


def rotation_matrix(angle: float) -> npt.NDArray[np.float64]:
    """Return the matrix ``(2, 2)`` that rotates (y, x) by ``angle`` (radians, from y towards x)."""
    cosine, sine = math.cos(angle), math.sin(angle)
    return np.array([[cosine, -sine], [sine, cosine]])


def mapped(positions: Positions, matrix: npt.NDArray[np.float64]) -> Positions:
    """Return ``positions`` ``(n, 2)``, mapped about their centre by ``matrix`` ``(2, 2)``."""
    middle = positions.mean(axis=0)
    return np.asarray((positions - middle) @ matrix.T + middle)
