"""Object patches: extraction and accumulation are adjoint, differentiable, and the same on both code paths."""

from __future__ import annotations

import pytest
import torch

from ptychopinn_torch_plugin.physics import patches as patches_module
from ptychopinn_torch_plugin.physics.patches import accumulate_patches, extract_patches, extract_window

from .conftest import Setup, sides


def random_like(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.complex128, generator=generator)


def test_a_patch_begins_at_its_origin() -> None:
    object_array = torch.arange(30.0).reshape(1, 5, 6)
    cut = extract_patches(object_array, torch.tensor([[[1, 2]]]), (2, 3))
    assert cut.tolist() == [[[[8.0, 9.0, 10.0], [14.0, 15.0, 16.0]]]]


def test_accumulation_is_the_adjoint_of_extraction(setup: Setup) -> None:
    shape = sides(setup.probe)
    patches = random_like((1, setup.patch_origins.shape[1], *shape), 1)
    left = torch.vdot(patches.flatten(), extract_patches(setup.object_array, setup.patch_origins, shape).flatten())
    right = torch.vdot(
        accumulate_patches(patches, setup.patch_origins, sides(setup.object_array)).flatten(),
        setup.object_array.flatten(),
    )
    torch.testing.assert_close(left, right, rtol=1e-12, atol=0)


def test_gradients_to_second_order(setup: Setup) -> None:
    shape = sides(setup.probe)
    object_array = setup.object_array[..., : shape[0] + 9, :].clone().requires_grad_()
    patch_origins = setup.patch_origins[:, :2]

    def energy(x: torch.Tensor) -> torch.Tensor:
        cut = extract_patches(x, patch_origins, shape)
        back = accumulate_patches(cut * cut.abs().square(), patch_origins, sides(x))
        return back.abs().square().sum().sqrt()

    (first,) = torch.autograd.grad(energy(object_array), object_array, create_graph=True)
    direction = random_like(tuple(object_array.shape), 2)
    (second,) = torch.autograd.grad((first.conj() * direction).real.sum(), object_array)
    step = 1e-6

    def slope(x: torch.Tensor) -> torch.Tensor:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(energy(x), x)[0]

    numeric = (slope(object_array + step * direction) - slope(object_array - step * direction)) / (2 * step)
    torch.testing.assert_close(second, numeric, rtol=1e-5, atol=1e-5 * float(numeric.abs().max()))


def test_slices_and_flat_indices_agree(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """The accelerator path, run on the CPU, gives what the slices give."""
    shape = sides(setup.probe)
    sliced = patches_module._extract(setup.object_array, setup.patch_origins, shape)
    merged = patches_module._accumulate(sliced, setup.patch_origins, sides(setup.object_array))
    monkeypatch.setattr(patches_module, 'SLICING_DEVICES', frozenset())
    assert torch.equal(patches_module._extract(setup.object_array, setup.patch_origins, shape), sliced)
    torch.testing.assert_close(
        patches_module._accumulate(sliced, setup.patch_origins, sides(setup.object_array)), merged
    )


def test_a_window_extends_beyond_the_image() -> None:
    image = torch.arange(12.0).reshape(3, 4)
    window = extract_window(image, (-1, 2), (3, 4), fill=9.0)
    assert window.tolist() == [[9, 9, 9, 9], [2, 3, 9, 9], [6, 7, 9, 9]]
    assert (extract_window(image, (5, 0), (2, 2), fill=0.0) == 0).all()
    assert torch.equal(extract_window(window, (1, -2), (3, 4))[:2, 2:], image[:2, 2:])
