"""Stitching: weighted means, coverage, and the phase between windows."""

from __future__ import annotations

import torch

from ptychopinn_torch_plugin.engines.stitching import Stitcher
from ptychopinn_torch_plugin.physics.patches import extract_patches
from ptychopinn_torch_plugin.physics.probe import illumination, is_illuminated

CPU = torch.device('cpu')


def complex_normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))


def test_patches_of_one_object_give_the_object() -> None:
    object_array = complex_normal(1, 30, 34, seed=0)
    patch_origins = torch.tensor([[[y, x] for y in range(0, 19, 3) for x in range(0, 23, 4)]])
    probes = complex_normal(1, patch_origins.shape[1], 2, 10, 9, seed=1)
    stitcher = Stitcher((30, 34), CPU)
    stitcher.add(extract_patches(object_array, patch_origins, (10, 9)), probes, patch_origins)
    result, coverage = stitcher.result(), is_illuminated(stitcher.photons)
    assert coverage[:28, :29].all()
    torch.testing.assert_close(result[coverage], object_array[0][coverage])
    assert (result[~coverage] == 1).all()
    assert not coverage[28:].any()


def test_the_mean_is_weighted_by_the_photons() -> None:
    stitcher = Stitcher((1, 3), CPU)
    patch_origins = torch.tensor([[[0, 0], [0, 1]]])
    patches = torch.tensor([[[[2.0 + 0j, 2.0]], [[5.0, 5.0]]]])
    probes = torch.tensor([[[[[1.0 + 0j, 1.0]]], [[[1j * 2**0.5, 2.0j]]]]])
    stitcher.add(patches, probes, patch_origins)
    expected = torch.tensor([[2.0, (1 * 2 + 2 * 5) / 3, 5.0]], dtype=torch.complex64)
    torch.testing.assert_close(stitcher.result(), expected)


def test_overlap_measures_the_phase_between_windows() -> None:
    object_array = complex_normal(20, 20, seed=2)
    photons = torch.ones((12, 12))
    stitcher = Stitcher((20, 20), CPU)
    stitcher.add_object(object_array[:12, :12], photons, (0, 0))
    rotated = object_array[5:17, 4:16] * torch.polar(torch.tensor(1.0), torch.tensor(-0.7))
    overlap = stitcher.overlap(rotated, photons, (5, 4))
    torch.testing.assert_close(torch.angle(overlap), torch.tensor(0.7))
    assert float(stitcher.overlap(rotated[:3, :3], photons[:3, :3], (17, 17)).abs()) == 0.0
    assert float(stitcher.overlap(rotated, photons, (25, -14)).abs()) == 0.0


def test_an_object_is_the_sum_of_its_patches() -> None:
    """Adding an object with its illumination is adding all of its patches; what extends beyond is cut off."""
    object_array = complex_normal(1, 30, 34, seed=0)
    patch_origins = torch.tensor([[[y, x] for y in range(2, 19, 3) for x in range(3, 23, 4)]])
    probes = complex_normal(1, patch_origins.shape[1], 2, 10, 9, seed=1)
    one, two = Stitcher((28, 32), CPU), Stitcher((28, 32), CPU)
    one.add(extract_patches(object_array, patch_origins, (10, 9)), probes, patch_origins - torch.tensor([1, 2]))
    two.add_object(object_array[0], illumination(probes, patch_origins, (30, 34))[0], (-1, -2))
    torch.testing.assert_close(two.photons, one.photons)
    torch.testing.assert_close(two.result(), one.result(), rtol=1e-4, atol=1e-5)
