"""Stitching: weighted means, coverage, and the phase between windows."""

from __future__ import annotations

import torch

from ptychopinn_torch_plugin.engines.stitching import Stitcher
from ptychopinn_torch_plugin.physics.patches import gather

CPU = torch.device('cpu')


def complex_normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))


def test_patches_of_one_object_give_the_object() -> None:
    canvas = complex_normal(1, 30, 34, seed=0)
    patch_origins = torch.tensor([[[y, x] for y in range(0, 19, 3) for x in range(0, 23, 4)]])
    probes = complex_normal(1, patch_origins.shape[1], 2, 10, 9, seed=1)
    stitcher = Stitcher((30, 34), CPU)
    stitcher.add(gather(canvas, patch_origins, (10, 9)), probes, patch_origins)
    canvas_out, coverage = stitcher.result()
    assert coverage[:28, :29].all()
    torch.testing.assert_close(canvas_out[coverage], canvas[0][coverage])
    assert (canvas_out[~coverage] == 1).all()
    assert not coverage[28:].any()


def test_the_mean_is_weighted_by_the_photons() -> None:
    stitcher = Stitcher((1, 3), CPU)
    patch_origins = torch.tensor([[[0, 0], [0, 1]]])
    patches = torch.tensor([[[[2.0 + 0j, 2.0]], [[5.0, 5.0]]]])
    probes = torch.tensor([[[[[1.0 + 0j, 1.0]]], [[[1j * 2**0.5, 2.0j]]]]])
    stitcher.add(patches, probes, patch_origins)
    expected = torch.tensor([[2.0, (1 * 2 + 2 * 5) / 3, 5.0]], dtype=torch.complex64)
    torch.testing.assert_close(stitcher.result().canvas, expected)


def test_overlap_measures_the_phase_between_windows() -> None:
    canvas = complex_normal(1, 20, 20, seed=2)
    probes = complex_normal(1, 1, 1, 12, 12, seed=3)
    stitcher = Stitcher((20, 20), CPU)
    first, second = torch.tensor([[[0, 0]]]), torch.tensor([[[5, 4]]])
    stitcher.add(gather(canvas, first, (12, 12)), probes, first)
    turned = gather(canvas, second, (12, 12)) * torch.polar(torch.tensor(1.0), torch.tensor(-0.7))
    overlap = stitcher.overlap(turned, probes, second)
    torch.testing.assert_close(torch.angle(overlap), torch.tensor(0.7))
    assert float(stitcher.overlap(turned[..., :3, :3], probes[..., :3, :3], torch.tensor([[[17, 17]]])).abs()) == 0.0
