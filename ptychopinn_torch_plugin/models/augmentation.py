"""Augmentation: the eight rotations by 90 degrees and reflections of an image."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Augmentation(NamedTuple):
    """A rotation by multiples of 90 degrees, then a reflection; in training each batch gets a random one."""

    quarters: int = 0
    mirrored: bool = False

    @classmethod
    def random(cls) -> Augmentation:
        """Draw one of the eight by torch's random generator."""
        number = int(torch.randint(8, ()))
        return cls(number % 4, mirrored=number >= 4)

    def apply(self, image: Tensor) -> Tensor:
        """Transform ``(..., h, w)``."""
        # Without a rotation torch would copy the image.
        turned = torch.rot90(image, self.quarters, dims=(-2, -1)) if self.quarters else image
        return turned.flip(-1) if self.mirrored else turned

    def invert(self, image: Tensor) -> Tensor:
        """Undo :meth:`apply`, for ``(..., h, w)`` as it was returned."""
        straight = image.flip(-1) if self.mirrored else image
        return torch.rot90(straight, -self.quarters, dims=(-2, -1)) if self.quarters else straight
