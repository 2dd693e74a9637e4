"""The optimisers of the solver: every number of their formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ptychopinn_torch_plugin.engines.optimizers import HeavyBall, PositionOptimizer


def without_affine_part(displacement: np.ndarray, given: np.ndarray) -> np.ndarray:
    affine = np.c_[np.ones(len(given)), given]
    rest: np.ndarray = displacement - affine @ np.linalg.lstsq(affine, displacement, rcond=None)[0]
    return rest


def test_positions_take_the_steps_of_adam_without_their_affine_part() -> None:
    """Against torch's own Adam, whose step length is set by hand: half a cosine from 0.3 pixels to zero."""
    generator = torch.Generator().manual_seed(0)
    given = 40 * torch.rand((30, 2), dtype=torch.float64, generator=generator)
    epochs = 4
    optimizer = PositionOptimizer(given, epochs)
    positions, reference = given, torch.nn.Parameter(torch.zeros_like(given))
    adam = torch.optim.Adam([reference], betas=(0.9, 0.99), eps=1e-2, maximize=True)
    for epoch in range(epochs + 2):
        step = 0.1 * torch.randn((30, 2), dtype=torch.float64, generator=generator)
        positions = optimizer.step(positions, step)
        reference.grad = step
        adam.param_groups[0]['lr'] = 0.15 * (1 + math.cos(math.pi * min(epoch / epochs, 1.0)))
        adam.step()
        with torch.no_grad():
            reference.copy_(torch.from_numpy(without_affine_part(reference.detach().numpy(), given.numpy())))
        np.testing.assert_allclose(positions - given, reference.detach(), rtol=0, atol=1e-4)
    assert float((positions - given).abs().max()) > 0.3


@pytest.mark.parametrize('count', [1, 3])
def test_three_positions_have_an_affine_part_only(count: int) -> None:
    given = torch.tensor([[0.0, 0.0], [7.0, 1.0], [2.0, 8.0]])[:count]
    moved = PositionOptimizer(given, 10).step(given, torch.ones(count, 2))
    assert torch.equal(moved, given)
    assert moved is not given


def test_four_positions_move() -> None:
    given = torch.tensor([[0.0, 0.0], [7.0, 0.0], [0.0, 8.0], [7.0, 8.0]])
    twist = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]])
    moved = PositionOptimizer(given, 10).step(given, 0.1 * twist)
    torch.testing.assert_close(moved - given, 0.3 / 1.1 * twist, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('epochs', [-2, 0, 1])
def test_without_epochs_only_the_first_step_has_a_length(epochs: int) -> None:
    given = torch.tensor([[0.0, 0.0], [7.0, 0.0], [0.0, 8.0], [7.0, 8.0]])
    step = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]])
    optimizer = PositionOptimizer(given, epochs)
    once = optimizer.step(given, step)
    assert float((once - given).abs().max()) > 0.2
    torch.testing.assert_close(optimizer.step(once, step), once)


def test_positions_on_one_line_keep_to_finite_numbers() -> None:
    given = torch.stack([torch.arange(9.0), torch.zeros(9)], dim=1)
    bent = torch.stack([torch.zeros(9), 0.01 * (torch.arange(9.0) - 4).square()], dim=1)
    moved = PositionOptimizer(given, 10).step(given, bent) - given
    assert bool(torch.isfinite(moved).all())
    assert float(moved[:, 0].abs().max()) < 1e-5
    assert float((moved[:, 1].sum()).abs()) < 1e-4
    assert float(moved[:, 1].abs().max()) > 0.01


def test_the_momentum_of_the_heavy_ball_increases_from_a_restart_on() -> None:
    """``b_k = min(0.93, k / (k + 5))``; a step that a regulariser changed is the next velocity."""
    ball = HeavyBall(torch.zeros(2, dtype=torch.complex64))
    one = torch.tensor([1.0, 2.0j])
    velocity = torch.zeros(2, dtype=torch.complex64)
    for age in range(80):
        velocity = min(0.93, age / (age + 5)) * velocity + one
        torch.testing.assert_close(ball.step(one), velocity)
    ball.replace_velocity(3 * one)
    torch.testing.assert_close(ball.step(one), (1 + 0.93 * 3) * one)
    ball.restart()
    torch.testing.assert_close(ball.step(one), one)
    torch.testing.assert_close(ball.step(one), (1 + 1 / 6) * one)
    ball.restart()
    ball.replace_velocity(one)
    torch.testing.assert_close(ball.step(one), one)
