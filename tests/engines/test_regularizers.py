"""Total variation and cosine blocks: they smooth faint pixels and keep bright ones and edges."""

from __future__ import annotations

import pytest
import torch

from ptychopinn_torch_plugin.engines.regularizers import CosineBlocks, TotalVariation, regularizer_for
from ptychopinn_torch_plugin.physics.cosine_shrinkage import BLOCK_PX, CosineShrinkage
from ptychopinn_torch_plugin.types import Smoothing


def noisy_step(noise: float) -> tuple[torch.Tensor, torch.Tensor]:
    truth = torch.ones(40, 40, dtype=torch.complex64)
    truth[:, 20:] = 0.6 * torch.polar(torch.tensor(1.0), torch.tensor(0.5))
    return truth, truth + noise * torch.randn(40, 40, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))


def converged(total_variation: TotalVariation, noisy: torch.Tensor, photons: torch.Tensor) -> torch.Tensor:
    for _ in range(50):
        answer = total_variation(noisy, photons)
    return answer


def test_faint_noise_goes_and_the_edge_stays() -> None:
    truth, noisy = noisy_step(0.1)
    photons = torch.full((40, 40), 1 / 0.1**2)
    smoothed = converged(TotalVariation(8.0, noisy), noisy, photons)
    before, after = (float((image - truth)[2:-2, 2:-2].abs().square().mean().sqrt()) for image in (noisy, smoothed))
    assert after < 0.5 * before
    assert float((smoothed[:, 19] - smoothed[:, 20]).abs().mean()) > 0.7 * float((truth[0, 19] - truth[0, 20]).abs())


def test_bright_pixels_hardly_change() -> None:
    _, noisy = noisy_step(0.1)
    smoothed = converged(TotalVariation(4.0, noisy), noisy, torch.full((40, 40), 1e6))
    assert float((smoothed - noisy).abs().max()) < 2e-5


def test_no_strength_changes_nothing() -> None:
    _, noisy = noisy_step(0.1)
    assert TotalVariation(0.0, noisy)(noisy, torch.ones(40, 40)) is noisy


def test_the_result_minimises_the_objective() -> None:
    """No small change of the answer lowers the cost."""
    _, noisy = noisy_step(0.2)
    generator = torch.Generator().manual_seed(1)
    photons = 20 + 30 * torch.rand(40, 40, generator=generator)
    strength = 3.0
    answer = converged(TotalVariation(strength, noisy), noisy, photons)

    def cost(image: torch.Tensor) -> float:
        steps = (image.roll(-1, 0) - image).abs().square() + (image.roll(-1, 1) - image).abs().square()
        return float((0.5 * photons * (image - noisy).abs().square()).sum() + strength * steps.sqrt().sum())

    for _ in range(20):
        change = torch.randn(40, 40, dtype=torch.complex64, generator=generator)
        for size in (1e-1, 1e-2):
            assert cost(answer) <= cost(answer + size * change) * (1 + 1e-5)
    assert cost(answer) < cost(noisy)


def test_cosine_blocks_remove_faint_noise_and_keep_the_edge() -> None:
    truth, noisy = noisy_step(0.1)
    blocks = CosineBlocks(Smoothing(4.0, 2.0, 0.5), noisy)
    for _ in range(16):
        blocks(noisy, torch.full((40, 40), 1 / 0.1**2))
    smoothed = blocks.result(noisy)
    before, after = (float((image - truth)[2:-2, 2:-2].abs().square().mean().sqrt()) for image in (noisy, smoothed))
    assert after < 0.5 * before
    assert float((smoothed[:, 19] - smoothed[:, 20]).abs().mean()) > 0.7 * float((truth[0, 19] - truth[0, 20]).abs())


def test_the_share_weighs_cosine_blocks_against_total_variation() -> None:
    _, noisy = noisy_step(0.1)
    photons = torch.full((40, 40), 100.0)
    answer = regularizer_for(Smoothing(3.0, 1.5, 0.2), noisy)(noisy, photons)
    expected = 0.8 * TotalVariation(3.0, noisy)(noisy, photons) + 0.2 * CosineShrinkage(1.5)(noisy, photons)
    torch.testing.assert_close(answer, expected)
    assert isinstance(regularizer_for(Smoothing(3.0), noisy), TotalVariation)


@pytest.mark.parametrize('share, weight', [(0.5, 1.0), (0.1, 0.2), (0.8, 1.0)])
def test_cosine_blocks_return_the_mean_of_eight_epochs(share: float, weight: float) -> None:
    _, noisy = noisy_step(0.1)
    blocks, photons = CosineBlocks(Smoothing(1.0, 1.0, share), noisy), torch.full((40, 40), 100.0)
    assert blocks.result(noisy) is noisy
    mean = torch.zeros_like(noisy)
    for epoch in range(1, 12):
        answer = blocks(noisy, photons)
        mean = mean + (answer - mean) / min(epoch, 8)
        torch.testing.assert_close(blocks.result(answer), answer + weight * (mean - answer))


@pytest.mark.parametrize('shape', [(40, 40), (37, 50), (8, 300)])
def test_without_noise_or_threshold_cosine_blocks_return_the_object(shape: tuple[int, int]) -> None:
    """Blocks cover every pixel, whatever the sides of the object, and their transform is orthonormal."""
    wave = torch.randn(shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    shrink = CosineShrinkage(1e-3)
    for _ in range(3):
        torch.testing.assert_close(shrink(wave, torch.full(shape, 1e9)), wave, atol=2e-5, rtol=1e-4)


def test_a_threshold_above_everything_leaves_the_mean_of_each_block() -> None:
    wave = torch.randn(40, 40, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    flat = CosineShrinkage(100.0)(wave, torch.ones(40, 40))
    assert float(flat.abs().std()) < 3 / BLOCK_PX * float(wave.abs().std())
    torch.testing.assert_close(flat.mean(), wave.mean(), atol=5e-3, rtol=0)


def test_a_constant_phase_of_the_object_changes_nothing() -> None:
    """The two axes of a block follow its phase."""
    _, noisy = noisy_step(0.1)
    turn = torch.polar(torch.tensor(1.0), torch.tensor(0.7))
    photons = torch.full((40, 40), 100.0)
    straight, turned = CosineShrinkage(1.0), CosineShrinkage(1.0)
    for _ in range(2):
        error = straight(noisy, photons) * turn - turned(noisy * turn, photons)
        # A coefficient within rounding of the threshold may differ.
        assert float(error.abs().square().mean().sqrt()) < 1e-3
    assert float((CosineShrinkage(1.0)(noisy, photons) - noisy).abs().square().mean().sqrt()) > 0.02


def test_bands_of_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    _, noisy = noisy_step(0.1)
    photons = torch.full((40, 40), 100.0)
    whole = CosineShrinkage(1.0)
    expected = [whole(noisy, photons) for _ in range(3)]
    monkeypatch.setattr('ptychopinn_torch_plugin.physics.cosine_shrinkage.BAND_BLOCKS', 25)
    bands = CosineShrinkage(1.0)
    for answer in expected:
        torch.testing.assert_close(bands(noisy, photons), answer)
