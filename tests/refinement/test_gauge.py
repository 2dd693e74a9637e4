"""The gauge: patterns stay, the probe goes back to where it was."""

from __future__ import annotations

import pytest
import torch

from ptychopinn_torch_plugin.physics.forward import simulate
from ptychopinn_torch_plugin.physics.probe import power, probes_at
from ptychopinn_torch_plugin.physics.propagation import shift_ramp
from ptychopinn_torch_plugin.refinement.gauge import centre_of, restore_gauge
from tests.scans import curved_probe, smooth_object


def soft_edge(height: int, width: int) -> torch.Tensor:
    """Zero at the border, so that nothing wraps around."""
    return torch.hann_window(height, dtype=torch.float64)[:, None] * torch.hann_window(width, dtype=torch.float64)


def test_patterns_stay_and_the_probe_returns() -> None:
    reference = torch.from_numpy(curved_probe((64, 68), modes=2))[:, 16:-16, 16:-16] * soft_edge(32, 36)
    wandered = torch.fft.ifft2(torch.fft.fft2(reference) * shift_ramp(torch.tensor([1.3, -0.6]).double(), (32, 36)))
    y, x = torch.arange(32)[:, None], torch.arange(36)
    wandered = 1.7 * wandered * torch.exp(2j * torch.pi * (0.02 * y - 0.013 * x))
    window = torch.hann_window(80, dtype=torch.float64)
    canvas = 1 + (torch.from_numpy(smooth_object((80, 80), 1)) - 1) * window[:, None] * window
    corners = torch.tensor([[[20, 22], [25, 18], [23, 24]]])
    restored, probe = restore_gauge(canvas, wandered, reference)

    def patterns(image: torch.Tensor, modes: torch.Tensor) -> torch.Tensor:
        remainders = torch.tensor([[[0.2, 0.7], [0.0, 0.4], [0.9, 0.1]]], dtype=torch.float64)
        return simulate(image[None], probes_at(modes, remainders), corners)

    before, after = patterns(canvas, wandered), patterns(restored, probe)
    assert float((before - after).abs().max() / before.max()) < 2e-3
    torch.testing.assert_close(centre_of(power(probe)), centre_of(power(reference)), atol=0.05, rtol=0)
    assert float(power(probe).sum()) == pytest.approx(float(power(reference).sum()))
    overlap = torch.vdot(reference.flatten(), probe.flatten()).abs() / power(reference).sum()
    assert float(overlap) == pytest.approx(1.0, abs=1e-3)


def test_the_centre_has_no_seam() -> None:
    light = torch.zeros(10, 12)
    light[0, 11] = light[0, 0] = 1.0
    assert centre_of(light).tolist() == pytest.approx([0.0, -0.5], abs=1e-6)
