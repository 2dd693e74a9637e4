"""The patch generator."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ptychopinn_torch_plugin.config import Config, ModelConfig, parse_config
from ptychopinn_torch_plugin.data.grouping import draw_groups
from ptychopinn_torch_plugin.data.scan import RawScan
from ptychopinn_torch_plugin.data.tensors import ScanTensors, initial_state
from ptychopinn_torch_plugin.engines.network import Predictor, steps_of, windows_of
from ptychopinn_torch_plugin.engines.progress import ProgressReporter, Stage
from ptychopinn_torch_plugin.errors import ConfigurationError
from ptychopinn_torch_plugin.models.base import Measurement
from ptychopinn_torch_plugin.models.patch import AMPLITUDES, PatchGenerator
from ptychopinn_torch_plugin.models.registry import build_generator
from ptychopinn_torch_plugin.observer import SilentObserver
from ptychopinn_torch_plugin.physics.forward import amplitude_update
from ptychopinn_torch_plugin.physics.kernels.compiled import COMPILED
from ptychopinn_torch_plugin.physics.probe import illumination
from ptychopinn_torch_plugin.training.batches import TrainingBatch, TrainingScan, make_batch
from ptychopinn_torch_plugin.training.losses import pinn_training_loss
from ptychopinn_torch_plugin.types import ReconstructionState
from tests.helpers.scans import make_scan, phase_and_scale_free_error

CPU = torch.device('cpu')


def patch_config(**model: object) -> Config:
    return parse_config(
        {
            'data': {'group_size': 4, 'neighbor_count': 6},
            'model': {'generator': 'patch', 'steps': 3, 'width': 8, 'levels': 2, **model},
        }
    )


def made(**model: object) -> PatchGenerator:
    torch.manual_seed(0)
    generator = build_generator(patch_config(**model).model)
    assert isinstance(generator, PatchGenerator)
    return generator


def groups(scan: RawScan, count: int = 3) -> TrainingBatch:
    config = patch_config().data
    tensors = ScanTensors(scan, CPU)
    drawn = draw_groups(scan.positions, config.group_size, config.neighbor_count, rng=np.random.default_rng(0))
    return make_batch(TrainingScan(tensors, initial_state(tensors)), drawn[:count])


def measurement(batch: TrainingBatch) -> Measurement:
    patterns = batch.inputs
    start = torch.ones_like(batch.reference)
    light = illumination(patterns.probes, patterns.patch_origins, (start.shape[-2], start.shape[-1]))
    return Measurement(lambda estimate: amplitude_update(estimate, patterns)[0], (patterns,), start, light)


def predicted(scan: RawScan, generator: PatchGenerator, **inference: object) -> ReconstructionState:
    tensors = ScanTensors(scan, CPU)
    state = initial_state(tensors)
    config = parse_config({'inference': inference}).inference
    windows = windows_of(state, generator, 4, config)
    progress = ProgressReporter(SilentObserver(), [Stage('', len(windows), len(windows))], scan.object_shape, 0)
    return Predictor(tensors, state, generator.eval(), windows, 1, config.batch_size, progress).predict()


def spoil(generator: PatchGenerator, seed: int = 5) -> None:
    """Set weights that are not zero, as those of a trained network."""
    torch.manual_seed(seed)
    with torch.no_grad():
        generator.network.head.weight.normal_(std=0.3)


@pytest.mark.parametrize('name', sorted(AMPLITUDES))
def test_activations_map_zero_to_one_and_are_monotonic(name: str) -> None:
    assert float(AMPLITUDES[name](torch.zeros(()))) == pytest.approx(1.0, abs=1e-6)
    within = AMPLITUDES[name](torch.linspace(-1, 1, 50))
    assert (within >= 0).all()
    assert (within.diff() >= 0).all()


def test_the_untrained_network_returns_the_initial_estimate_and_more_steps_improve_it() -> None:
    scan, _ = make_scan()
    batch = groups(scan)
    losses = [pinn_training_loss(made(steps=steps), batch, 'amplitude', COMPILED).item() for steps in (1, 3, 10)]
    assert losses[0] > losses[1] > losses[2]


@pytest.mark.parametrize(('likelihood', 'share'), [('amplitude', 0.8), ('poisson', 0.8), ('mae', 0.998)])
def test_training_on_groups_lowers_their_loss(likelihood: str, share: float) -> None:
    scan, _ = make_scan(photons=1e7)
    batch = groups(scan)
    generator = made(steps=1)
    optimizer = torch.optim.AdamW(generator.parameters(), lr=4e-3)
    losses = []
    for _ in range(40):
        loss = pinn_training_loss(generator, batch, likelihood, COMPILED)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    # The absolute difference is slow: its many dim pixels weigh as much as the few bright ones.
    assert losses[-1] < share * losses[0]
    assert all(parameter.grad is not None for parameter in generator.parameters())


def test_groups_are_independent_and_have_no_order() -> None:
    scan, _ = make_scan()
    generator = made().eval()
    spoil(generator)
    batch = groups(scan)
    (together,) = generator.unroll(measurement(batch))
    patterns = batch.inputs
    one = patterns._replace(
        amplitudes=patterns.amplitudes[1:2].flip(1),
        probes=patterns.probes[1:2].flip(1),
        patch_origins=patterns.patch_origins[1:2].flip(1),
    )
    (alone,) = generator.unroll(measurement(TrainingBatch(one, one, batch.reference[1:2])))
    assert torch.allclose(alone[0], together[1], atol=2e-5)


def test_outside_the_centre_the_output_is_coarse_or_one() -> None:
    scan, _ = make_scan(rows=1)
    batch = _single(scan)
    whole, half = made(probe_big=True, steps=2).eval(), made(probe_big=False, steps=2).eval()
    for generator in (whole, half):
        spoil(generator)
    patterns = batch.inputs
    top, left = (int(value) for value in patterns.patch_origins[0, 0])
    objects = [next(generator.unroll(measurement(batch)))[0] for generator in (whole, half)]
    patches = [each[top : top + 32, left : left + 32] for each in objects]
    centre = torch.zeros(32, 32, dtype=torch.bool)
    centre[8:24, 8:24] = True
    assert torch.allclose(patches[0][centre], patches[1][centre], atol=1e-5)
    assert (patches[1][~centre] == 1).all()
    assert not (patches[0][~centre] == 1).all()
    # The factor of the network changes little from pixel to pixel outside the centre.
    estimate = next(made(steps=2).eval().unroll(measurement(batch)))[0][top : top + 32, left : left + 32]
    added = (patches[0] / estimate).abs().detach()
    rough = added.diff(dim=0).abs()
    assert float(rough[:6].mean()) < 0.5 * float(rough[8:23, 8:24].mean())


def _single(scan: RawScan) -> TrainingBatch:
    tensors = ScanTensors(scan, CPU)
    patterns = tensors.batch(initial_state(tensors), np.arange(1))
    return TrainingBatch(patterns, patterns, torch.ones((1, 32, 32), dtype=torch.complex64))


def test_a_constant_phase_of_the_start_passes_through() -> None:
    scan, _ = make_scan()
    generator = made().eval()
    spoil(generator)
    given = measurement(groups(scan))
    phase = torch.polar(torch.tensor(1.0), torch.tensor(0.9))
    (plain,) = generator.unroll(given)
    (rotated,) = generator.unroll(given._replace(start=given.start * phase))
    assert torch.allclose(rotated, plain * phase, atol=2e-4)


def test_every_position_is_the_anchor_of_a_group_at_inference() -> None:
    scan, truth = make_scan(rows=9)
    generator = made(steps=12)
    tensors = ScanTensors(scan, CPU)
    batches = windows_of(
        initial_state(tensors), generator, 4, parse_config({'inference': {'batch_size': 40}}).inference
    )
    windows = [window for batch in batches for window in batch.indices]
    assert sorted(int(window[0]) for window in windows) == list(range(scan.size))
    assert all(len(set(window.tolist())) == 4 for window in windows)
    assert max(batch.indices.size for batch in batches) <= 40
    state = predicted(scan, generator)
    y, x = state.origin
    there = truth[y : y + state.object_shape[0], x : x + state.object_shape[1]]
    covered = (state.object_array != 1).numpy()
    error = phase_and_scale_free_error(state.object_array.numpy(), there, covered)
    assert error < 0.5 * phase_and_scale_free_error(np.ones_like(there), there, covered)


def test_the_batch_size_has_no_effect_on_the_object() -> None:
    scan, _ = make_scan()
    generator = made()
    spoil(generator)
    few, many = (predicted(scan, generator, batch_size=size).object_array for size in (5, 128))
    assert torch.allclose(few, many, atol=2e-4)


def test_more_than_one_step_is_refused() -> None:
    generator = made()
    assert steps_of(generator, 0) == 1
    with pytest.raises(ConfigurationError, match='inference.steps = 7'):
        steps_of(generator, 7)
    assert steps_of(build_generator(ModelConfig(steps=5)), 0) == 10
