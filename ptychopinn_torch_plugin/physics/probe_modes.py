"""Incoherent probe modes: adding modes, and orthogonalising them."""

from __future__ import annotations

import torch
from torch import Tensor

NEW_MODE_POWER = 0.05
"""Share of the power that every added mode starts with."""


def add_modes(probe: Tensor, modes: int) -> Tensor:
    """Add weak modes to ``probe`` ``(M, H, W)`` until it has ``modes``; the new ones start as derivatives of the first.

    A beam that vibrates along y or x is, to first order, a mixture of the beam and its derivative along that axis, and
    vibration is the most common reason for more than one mode.
    """
    if modes <= len(probe):
        return probe
    candidates = list(probe)
    source = 0
    while len(candidates) < modes:
        candidates += list(torch.gradient(candidates[source]))
        source += 1
    stack = orthogonalise(torch.stack(candidates[:modes]))
    total = (probe.abs() ** 2).sum()
    old = probe / probe.abs().square().sum().sqrt() * (total * (1 - NEW_MODE_POWER * (modes - len(probe)))).sqrt()
    new = stack[len(probe) :]
    new = new / new.abs().square().sum(dim=(-2, -1), keepdim=True).sqrt() * (NEW_MODE_POWER * total).sqrt()
    return torch.cat([old, new])


def orthogonalise(probe: Tensor) -> Tensor:
    """Return the same mixed state in orthogonal modes, strongest first, ``(M, H, W)`` complex.

    No pattern changes: any unitary mix of the modes has the same intensity everywhere. The orthogonal mix diagonalises
    the matrix of the modes' overlaps.
    """
    if len(probe) == 1:
        return probe
    flat = probe.flatten(1)
    vectors: Tensor = torch.linalg.eigh(flat.conj() @ flat.T).eigenvectors
    mixed = vectors.T.flip(0) @ flat
    return mixed.reshape(probe.shape)
