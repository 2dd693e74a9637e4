"""The unrolled generator."""

from __future__ import annotations

import pytest
import torch

from ptychopinn_torch_plugin.config import ModelConfig
from ptychopinn_torch_plugin.models.base import Measurement
from ptychopinn_torch_plugin.models.registry import build_generator
from ptychopinn_torch_plugin.models.unet import UNet
from ptychopinn_torch_plugin.models.unrolled import UnrolledGenerator


def towards(target: torch.Tensor, weight: torch.Tensor) -> Measurement:
    return Measurement(lambda canvas: (target - canvas) * weight, (), torch.ones_like(target), weight)


@pytest.fixture
def generator() -> UnrolledGenerator:
    torch.manual_seed(0)
    made = build_generator(ModelConfig(steps=6, width=4, levels=2))
    assert isinstance(made, UnrolledGenerator)
    return made


def test_the_head_starts_at_zero_so_that_physics_alone_acts(generator: UnrolledGenerator) -> None:
    torch.manual_seed(1)
    target = 1 + 0.1 * torch.randn(1, 21, 27, dtype=torch.complex64)
    weight = torch.rand(1, 21, 27)
    before = [canvas.clone() for canvas in generator.unroll(towards(target, weight))]
    with torch.no_grad():
        for parameter in generator.network.down.parameters():
            parameter.add_(0.5)
    after = list(generator.unroll(towards(target, weight)))
    assert len(before) == 6
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_the_steps_solve_a_linear_problem(generator: UnrolledGenerator) -> None:
    torch.manual_seed(2)
    target = 1 + 0.1 * torch.randn(1, 40, 40, dtype=torch.complex64)
    weight = torch.full((1, 40, 40), 3.0)
    *_, answer = generator.unroll(towards(target, weight), steps=60)
    assert float((answer - target).abs().max().detach()) < 0.02


def test_the_network_cannot_run_away(generator: UnrolledGenerator) -> None:
    with torch.no_grad():
        for parameter in generator.network.parameters():
            parameter.normal_(std=3.0)
        start = torch.ones(1, 24, 24, dtype=torch.complex64)
        weight = torch.ones(1, 24, 24)
        *_, answer = generator.unroll(towards(start, weight), steps=30)
    assert torch.isfinite(answer.abs()).all()
    assert float(answer.abs().max()) < 60


def test_dark_pixels_are_left_alone(generator: UnrolledGenerator) -> None:
    with torch.no_grad():
        generator.network.head.bias.fill_(1.0)  # type: ignore[union-attr]
        weight = torch.zeros(1, 16, 16)
        weight[..., :8] = 1.0
        start = torch.ones(1, 16, 16, dtype=torch.complex64)
        *_, answer = generator.unroll(towards(start, weight))
    assert (answer[..., 8:] == 1).all()
    assert not (answer[..., :8] == 1).any()


def test_gradients_reach_every_parameter(generator: UnrolledGenerator) -> None:
    with torch.no_grad():
        generator.network.head.weight.normal_(std=0.01)
    target = 1 + 0.1 * torch.randn(1, 20, 20, dtype=torch.complex64)
    weight = torch.rand(1, 20, 20) + 0.1
    *_, answer = generator.unroll(towards(target, weight))
    loss = (answer - target).abs().square().sum()
    gradients = torch.autograd.grad(loss, list(generator.parameters()))
    assert all(float(gradient.abs().max()) > 0 for gradient in gradients)


@pytest.mark.parametrize('size', [(16, 16), (17, 23), (40, 9)], ids=str)
def test_unet_takes_any_size(size: tuple[int, int]) -> None:
    assert UNet(3, 2, width=4, levels=3)(torch.rand(2, 3, *size)).shape == (2, 2, *size)
