"""The forward model of far-field ptychography with mixed states, and its derivative with respect to the object.

With object patches ``O_j = R_j O``, probes ``P_jm`` (mode ``m`` at position ``j``, with its subpixel shift and its
frame intensity) and the unitary transform ``F``, the expected counts of pattern ``j`` are (P. Thibault & A. Menzel,
Nature 494, 68 (2013))::

    psi_jm = F(P_jm O_j)
    I_j    = sum_m |psi_jm|^2

Let ``D`` be the deviance of the counts, summed over pixels and patterns (:mod:`.noise_models`). Derivatives follow
one convention, Wirtinger's with respect to the conjugate, ``dD/dz* = (dD/dx + i dD/dy) / 2`` for ``z = x + iy``
(torch's gradient is twice that), and every update is minus a quarter of it (P. Thibault & M. Guizar-Sicairos, New J.
Phys. 14, 063004 (2012), for the gradients of both likelihoods)::

    chi_jm = F^-1(psi_jm q_j),  q_j = -1/4 dD/dI_j      exit-wave update
    U      = sum_jm R_j^T(P_jm* chi_jm)                 object update, -1/4 dD/dO*

For the amplitude likelihood ``psi_jm + F chi_jm`` has the measured modulus: the update is the projection of the error
reduction algorithm.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from .noise_models import update_factor
from .patches import accumulate_patches, extract_patches
from .propagation import backpropagate, propagate

EXPECTED_EPS = 1e-12
"""Photons added to expected counts: far below any count; it makes the square root differentiable at zero."""


class PatternBatch(NamedTuple):
    """Measured patterns, and what is needed to simulate them; ``B`` object arrays with ``C`` positions each."""

    amplitudes: Tensor
    """Square root of the counts, ``(B, C, H, W)`` real, zero frequency at the corner, zero where not measured."""
    probes: Tensor
    """Probes at the positions, ``(B, C, M, H, W)`` complex; ``sum |P|^2`` is the number of photons per pattern."""
    patch_origins: Tensor
    """First pixel (y, x) of each patch in its object array, ``(B, C, 2)`` int64."""
    good_pixels: Tensor
    """1 where the detector measured, else 0: ``(H, W)`` real, zero frequency at the corner."""


class Simulation(NamedTuple):
    """Simulated patterns and the waves that make them."""

    object_patches: Tensor
    """``(B, C, H, W)`` complex."""
    waves: Tensor
    """Far-field waves ``psi``, ``(B, C, M, H, W)`` complex."""
    expected: Tensor
    """Expected counts ``I``, ``(B, C, H, W)`` real, positive, zero frequency at the corner."""

    @property
    def amplitudes(self) -> Tensor:
        """Expected amplitudes ``sqrt(I)``, ``(B, C, H, W)`` real."""
        return self.expected.sqrt()


def power(wave: Tensor) -> Tensor:
    """Compute ``|wave|^2`` summed over the mode axis: ``(..., M, H, W)`` complex to ``(..., H, W)`` real."""
    return (wave.real.square() + wave.imag.square()).sum(dim=-3)


def simulate(object_array: Tensor, probes: Tensor, patch_origins: Tensor) -> Simulation:
    """Simulate the pattern of every position.

    Args:
        object_array: transmission, ``(B, h, w)`` complex.
        probes: ``(B, C, M, H, W)`` complex, in square roots of photons.
        patch_origins: ``(B, C, 2)`` int64.
    """
    patches = extract_patches(object_array, patch_origins, (probes.shape[-2], probes.shape[-1]))
    waves = propagate(probes * patches[:, :, None])
    return Simulation(patches, waves, power(waves) + EXPECTED_EPS)


def exit_wave_update(simulation: Simulation, batch: PatternBatch, likelihood: str = 'amplitude') -> Tensor:
    """Compute ``chi``, the update of every exit wave, ``(B, C, M, H, W)`` complex; bad pixels contribute nothing.

    ``likelihood`` is 'amplitude' or 'poisson'.
    """
    factor = update_factor(simulation.expected, batch.amplitudes, likelihood) * batch.good_pixels
    return backpropagate(simulation.waves * factor[:, :, None])


def patch_updates(chi: Tensor, probes: Tensor) -> Tensor:
    """Compute ``sum_m P_jm* chi_jm``: ``(B, C, M, H, W)`` complex, both, to ``(B, C, H, W)`` complex."""
    return (probes.conj() * chi).sum(dim=2)


def object_update(chi: Tensor, batch: PatternBatch, object_shape: tuple[int, int]) -> Tensor:
    """Compute the object update ``U = -1/4 dD/dO*``, ``(B, h, w)`` complex, not preconditioned."""
    return accumulate_patches(patch_updates(chi, batch.probes), batch.patch_origins, object_shape)


def amplitude_update(object_array: Tensor, batch: PatternBatch) -> tuple[Tensor, Simulation]:
    """Simulate a batch and return its object update for the amplitude likelihood, with the simulation."""
    simulation = simulate(object_array, batch.probes, batch.patch_origins)
    chi = exit_wave_update(simulation, batch)
    return object_update(chi, batch, (object_array.shape[-2], object_array.shape[-1])), simulation


def forward_adjoint(waves: Tensor, probes: Tensor, patch_origins: Tensor, object_shape: tuple[int, int]) -> Tensor:
    """Apply the adjoint of ``O -> psi_jm``: ``(B, C, M, H, W)`` complex to ``(B, h, w)`` complex."""
    return accumulate_patches(patch_updates(backpropagate(waves), probes), patch_origins, object_shape)
