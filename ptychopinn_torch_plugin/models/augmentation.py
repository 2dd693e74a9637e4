"""Sides to look at an image from: in training, which way is up teaches nothing."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Turn(NamedTuple):
    """A rotation by quarter turns, and a mirror: what a canvas looks like from another side.

    In training every batch is shown from a random side.
    """

    quarters: int = 0
    mirrored: bool = False

    @classmethod
    def random(cls) -> Turn:
        """One of the eight sides, by torch's random generator."""
        side = int(torch.randint(8, ()))
        return cls(side % 4, mirrored=side >= 4)

    def forth(self, image: Tensor) -> Tensor:
        """Turn ``(..., h, w)``."""
        turned = torch.rot90(image, self.quarters, dims=(-2, -1))
        return turned.flip(-1) if self.mirrored else turned

    def back(self, image: Tensor) -> Tensor:
        """Undo :meth:`forth`, for ``(..., h, w)`` as it came out of there."""
        straight = image.flip(-1) if self.mirrored else image
        return torch.rot90(straight, -self.quarters, dims=(-2, -1))
