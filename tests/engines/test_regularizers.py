"""Total variation: it smooths faint pixels, keeps bright ones and edges, and is a proximal step."""

from __future__ import annotations

import torch

from ptychopinn_torch_plugin.engines.regularizers import TotalVariation


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
