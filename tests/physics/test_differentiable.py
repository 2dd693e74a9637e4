"""The derivatives of the training step: those of autograd, for every kind of scan and both kernels."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor

from ptychopinn_torch_plugin.physics.forward import PatternBatch, amplitude_update, simulate
from ptychopinn_torch_plugin.physics.kernels.compiled import COMPILED
from ptychopinn_torch_plugin.physics.kernels.differentiable import fit, precondition
from ptychopinn_torch_plugin.physics.kernels.reference import REFERENCE
from ptychopinn_torch_plugin.physics.kernels.sums import Kernels
from ptychopinn_torch_plugin.physics.noise_models import DEVIANCES
from ptychopinn_torch_plugin.physics.preconditioner import low_frequency_filter, precondition_low_frequencies

from .conftest import make_setup

KERNELS = pytest.mark.parametrize('kernels', [REFERENCE, COMPILED], ids=['torch', 'numba'])
PRECISIONS = pytest.mark.parametrize('real, tolerance', [(torch.float64, 1e-10), (torch.float32, 2e-5)], ids=str)
COMPLEX = {torch.float64: torch.complex128, torch.float32: torch.complex64}


def make_batch(shape: tuple[int, int], modes: int) -> tuple[Tensor, PatternBatch]:
    """Two objects that differ, and patterns of a third one with a mask and dark pixels."""
    setup = make_setup(shape, modes=modes, positions=3)
    generator = torch.Generator().manual_seed(8)
    noise = torch.randn((3, *setup.object_array.shape[1:]), dtype=torch.complex128, generator=generator)
    objects = setup.object_array + 0.2 * noise
    amplitudes = simulate(objects[2:], setup.probes, setup.patch_origins).amplitudes
    amplitudes[:, :, 1, 2:4] = 0.0
    good = (torch.rand(shape, generator=generator) > 0.2).double()
    batch = PatternBatch(
        (amplitudes * good).expand(2, *amplitudes.shape[1:]).contiguous(),
        torch.cat([setup.probes, setup.probes.flip(1)]),
        torch.cat([setup.patch_origins, setup.patch_origins.flip(1)]),
        good,
    )
    return objects[:2].clone(), batch


def rounded(batch: PatternBatch, real: torch.dtype) -> PatternBatch:
    return PatternBatch(
        batch.amplitudes.to(real), batch.probes.to(COMPLEX[real]), batch.patch_origins, batch.good_pixels.to(real)
    )


@PRECISIONS
@KERNELS
@pytest.mark.parametrize('likelihood', sorted(DEVIANCES))
@pytest.mark.parametrize('shape, modes', [((8, 8), 1), ((9, 11), 2), ((40, 31), 1)], ids=str)
def test_update_and_deviance_and_their_derivatives(
    shape: tuple[int, int], modes: int, likelihood: str, kernels: Kernels, real: torch.dtype, tolerance: float
) -> None:
    objects, batch = make_batch(shape, modes)
    probing = torch.randn(objects.shape, dtype=objects.dtype, generator=torch.Generator().manual_seed(3))
    pixels = float(batch.good_pixels.sum()) * 6

    def results(update: Tensor, deviance: Tensor, start: Tensor) -> list[Tensor]:
        towards = (probing.to(update.dtype).conj() * update).real.sum()
        found = [update.detach(), deviance.detach()]
        for value in (towards, pixels * deviance, towards + 2.0 * pixels * deviance):
            found += torch.autograd.grad(value, start, retain_graph=True)
        return found

    exact = objects.requires_grad_()
    update, simulation = amplitude_update(exact, batch)
    deviance = DEVIANCES[likelihood](simulation.amplitudes, batch.amplitudes, batch.good_pixels)
    expected = results(update, deviance, exact)
    own = objects.detach().to(COMPLEX[real]).requires_grad_()
    found = results(*fit(kernels, own, rounded(batch, real), likelihood, needs_update=True), own)
    for one, two in zip(found, expected, strict=True):
        assert one.dtype in (real, COMPLEX[real])
        torch.testing.assert_close(one.to(two.dtype), two, rtol=0, atol=tolerance * float(two.abs().max()))
    empty, alone = fit(kernels, own, rounded(batch, real), likelihood, needs_update=False)
    assert empty.numel() == 0
    (of_alone,) = torch.autograd.grad(pixels * alone, own)
    torch.testing.assert_close(of_alone, found[3], rtol=0, atol=tolerance * float(found[3].abs().max()))


@KERNELS
def test_gradcheck(kernels: Kernels) -> None:
    """Finite differences of the function itself, in double precision."""
    objects, batch = make_batch((4, 5), 2)
    objects = objects[:, :9, :10]
    batch = batch._replace(patch_origins=torch.tensor([[[0, 0], [3, 2], [5, 5]], [[1, 0], [2, 2], [4, 1]]]))
    objects.requires_grad_()

    def both(objects: Tensor) -> tuple[Tensor, Tensor]:
        return fit(kernels, objects, batch, 'amplitude', needs_update=True)

    assert torch.autograd.gradcheck(both, (objects,))


@KERNELS
def test_the_memory_is_freed(kernels: Kernels) -> None:
    objects, batch = make_batch((8, 8), 1)
    update, deviance = fit(kernels, objects.requires_grad_(), batch, 'amplitude', needs_update=True)
    torch.autograd.grad(update.abs().sum() + deviance, objects)
    outputs = [weakref.ref(update), weakref.ref(deviance)]
    del update, deviance
    assert [output() for output in outputs] == [None, None]


@PRECISIONS
@KERNELS
@pytest.mark.parametrize('shape', [(20, 24), (17, 23)], ids=str)
def test_the_preconditioner(shape: tuple[int, int], kernels: Kernels, real: torch.dtype, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(2)
    update, objects, probing = torch.randn((3, 2, *shape), dtype=torch.complex128, generator=generator)
    objects[:, 2, 3:6] *= 1e-2  # opaque
    weight = torch.rand((2, *shape), dtype=torch.float64, generator=generator)
    gain = low_frequency_filter(shape, torch.device('cpu'))

    exact = (update.requires_grad_(), objects.requires_grad_())
    direction = precondition_low_frequencies(update * weight, objects, gain.double())
    expected = torch.autograd.grad((probing.conj() * direction).real.sum(), exact)
    own = tuple(array.detach().to(COMPLEX[real]).requires_grad_() for array in exact)
    found = precondition(kernels, own[0], weight.to(real), own[1], gain.to(real))
    of_both = torch.autograd.grad((probing.to(found.dtype).conj() * found).real.sum(), own)
    for one, two in zip((found.detach(), *of_both), (direction.detach(), *expected), strict=True):
        torch.testing.assert_close(one.to(two.dtype), two, rtol=0, atol=tolerance * float(two.abs().max()))
