"""The preconditioner for low frequencies of the phase."""

from __future__ import annotations

import pytest
import torch

from ptychopinn_torch_plugin.physics.preconditioner import low_frequency_filter, precondition_low_frequencies


def test_the_filter_is_zero_at_high_frequencies() -> None:
    gain = low_frequency_filter((100, 120), torch.device('cpu'), 10.0)
    assert gain[0, 0] == 0
    assert gain[1, 0] == pytest.approx((0.03 / 0.01) ** 2 - 1, rel=1e-4)
    assert gain[0, 1] == 10
    assert gain[4, 0] == 0


def test_only_low_frequencies_of_the_phase_are_amplified() -> None:
    gain = low_frequency_filter((64, 64), torch.device('cpu'), 10.0)
    wave = torch.sin(2 * torch.pi * torch.arange(64) / 64).expand(1, 64, 64)
    zero = torch.zeros_like(wave)
    flat = torch.ones(1, 64, 64, dtype=torch.complex64)
    slow_phase, slow_amplitude = torch.complex(zero, wave), torch.complex(wave, zero)
    factor = 1 + float(gain[0, 1])
    torch.testing.assert_close(
        precondition_low_frequencies(slow_phase, flat, gain), slow_phase * factor, atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(
        precondition_low_frequencies(slow_amplitude, flat, gain), slow_amplitude, atol=1e-4, rtol=1e-4
    )
