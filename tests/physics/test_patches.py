"""Frames: gather and merge are adjoint, differentiable, and the same on both code paths."""

from __future__ import annotations

import pytest
import torch

from ptychopinn_torch_plugin.physics import patches as frames
from ptychopinn_torch_plugin.physics.patches import gather, merge

from .conftest import Setup, sides


def random_like(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.complex128, generator=generator)


def test_gather_cuts_the_frame_at_its_corner() -> None:
    canvas = torch.arange(30.0).reshape(1, 5, 6)
    cut = gather(canvas, torch.tensor([[[1, 2]]]), (2, 3))
    assert cut.tolist() == [[[[8.0, 9.0, 10.0], [14.0, 15.0, 16.0]]]]


def test_merge_is_the_adjoint_of_gather(setup: Setup) -> None:
    shape = sides(setup.probe)
    patches = random_like((1, setup.patch_origins.shape[1], *shape), 1)
    left = torch.vdot(patches.flatten(), gather(setup.canvas, setup.patch_origins, shape).flatten())
    right = torch.vdot(merge(patches, setup.patch_origins, sides(setup.canvas)).flatten(), setup.canvas.flatten())
    torch.testing.assert_close(left, right, rtol=1e-12, atol=0)


def test_gradients_to_second_order(setup: Setup) -> None:
    shape = sides(setup.probe)
    canvas = setup.canvas[..., : shape[0] + 9, :].clone().requires_grad_()
    patch_origins = setup.patch_origins[:, :2]

    def energy(x: torch.Tensor) -> torch.Tensor:
        cut = gather(x, patch_origins, shape)
        back = merge(cut * cut.abs().square(), patch_origins, sides(x))
        return back.abs().square().sum().sqrt()

    (first,) = torch.autograd.grad(energy(canvas), canvas, create_graph=True)
    direction = random_like(tuple(canvas.shape), 2)
    (second,) = torch.autograd.grad((first.conj() * direction).real.sum(), canvas)
    step = 1e-6

    def slope(x: torch.Tensor) -> torch.Tensor:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(energy(x), x)[0]

    numeric = (slope(canvas + step * direction) - slope(canvas - step * direction)) / (2 * step)
    torch.testing.assert_close(second, numeric, rtol=1e-5, atol=1e-5 * float(numeric.abs().max()))


def test_slices_and_flat_indices_agree(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """The accelerator path, run on the CPU, gives what the slices give."""
    shape = sides(setup.probe)
    sliced = frames._gather(setup.canvas, setup.patch_origins, shape)
    merged = frames._merge(sliced, setup.patch_origins, sides(setup.canvas))
    monkeypatch.setattr(frames, 'SLICING_DEVICES', frozenset())
    assert torch.equal(frames._gather(setup.canvas, setup.patch_origins, shape), sliced)
    torch.testing.assert_close(frames._merge(sliced, setup.patch_origins, sides(setup.canvas)), merged)
