"""How the unknowns move: momentum with restarts, and positions that do not drift together."""

from __future__ import annotations

import math

import torch
from torch import Tensor

POSITION_STEP_PX = 0.3
"""Longest step of a position in one epoch, at the start."""
MOMENTUM_LIMIT = 0.93


class Momentum:
    """Nesterov-like momentum of one unknown, ramped up from its last restart.

    Restarts after B. O'Donoghue & E. Candes, Found. Comput. Math. 15, 715 (2015): when the misfit grows, the velocity
    points the wrong way and is dropped.
    """

    def __init__(self, like: Tensor) -> None:
        self._velocity = torch.zeros_like(like)
        self._age = 0

    def restart(self) -> None:
        """Forget the velocity."""
        self._velocity = torch.zeros_like(self._velocity)
        self._age = 0

    def step(self, direction: Tensor) -> Tensor:
        """The move for a preconditioned direction: real or complex, of any shape, that of the move."""
        momentum = min(MOMENTUM_LIMIT, self._age / (self._age + 5.0))
        self._velocity = momentum * self._velocity + direction
        self._age += 1
        return self._velocity

    def moved(self, move: Tensor) -> None:
        """Say what the move (shape as in :meth:`step`) came to in the end, where something else had its say in it."""
        self._velocity = move


class PositionMotion:
    """Adam on the Gauss-Newton steps of the positions (D. P. Kingma & J. Ba, arXiv:1412.6980), with cosine decay.

    Args:
        given: positions as they came, ``(n, 2)`` real, (y, x) in pixels.
        epochs: over how many epochs the step length decays to zero.
    """

    def __init__(self, given: Tensor, epochs: int) -> None:
        self._given = given
        self._epochs = max(epochs, 1)
        self._mean = torch.zeros_like(given)
        self._square = torch.zeros_like(given)
        self._age = 0
        self._centred = given - given.mean(dim=0)

    def step(self, positions: Tensor, change: Tensor) -> Tensor:
        """New positions ``(n, 2)`` after a step along ``change``, with no affine drift against the given ones."""
        self._age += 1
        self._mean = 0.9 * self._mean + 0.1 * change
        self._square = 0.99 * self._square + 0.01 * change.square()
        mean = self._mean / (1 - 0.9**self._age)
        deviation = (self._square / (1 - 0.99**self._age)).sqrt()
        length = POSITION_STEP_PX * 0.5 * (1 + math.cos(math.pi * min(1.0, (self._age - 1) / self._epochs)))
        return self._without_drift(positions + length * mean / (deviation + 1e-2))

    def _without_drift(self, positions: Tensor) -> Tensor:
        """Remove mean, scale, rotation and shear of the displacement: the patterns hardly hold those."""
        if len(positions) <= 3:
            return self._given.clone()
        displacement = positions - self._given
        displacement = displacement - displacement.mean(dim=0)
        return self._given + displacement - self._affine_part(displacement)

    def _affine_part(self, displacement: Tensor) -> Tensor:
        """Least squares by hand, two unknowns per axis: a library's last bits change from run to run."""
        y, x = self._centred[:, 0], self._centred[:, 1]
        yy, xx, xy = y.square().sum(), x.square().sum(), (y * x).sum()
        toward_y, toward_x = ((one[:, None] * displacement).sum(dim=0) for one in (y, x))
        # Positions on one line leave the determinant at nothing: a millionth of its bound keeps it away from there.
        determinant = (yy * xx - xy.square() + 1e-6 * (yy + xx).square()).clamp_min(1e-30)
        by_y, by_x = (xx * toward_y - xy * toward_x) / determinant, (yy * toward_x - xy * toward_y) / determinant
        return y[:, None] * by_y + x[:, None] * by_x
