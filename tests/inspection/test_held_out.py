"""Agreement with held-out patterns, and the verdict on a reconstruction of few photons."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.geometry.scans import known_scan
from ptychopinn_torch_plugin.config import RefinementConfig, parse_config
from ptychopinn_torch_plugin.data.scan import RawScan
from ptychopinn_torch_plugin.data.tensors import ScanTensors, initial_state
from ptychopinn_torch_plugin.engines.held_out import HoldOut, HoldOutPlan
from ptychopinn_torch_plugin.engines.pipeline import refine
from ptychopinn_torch_plugin.engines.solver import Solver
from ptychopinn_torch_plugin.engines.verification import reversed_defocus, verify
from ptychopinn_torch_plugin.metrics.credibility import UnrefinedProbes, credibility
from ptychopinn_torch_plugin.metrics.held_out import Agreement, agreement, join, lead_of
from tests.helpers.scans import make_scan

CPU = torch.device('cpu')


def patterns(photons: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts, their expectation and the mean pattern, 200 patterns of 400 pixels."""
    rng = np.random.default_rng(2)
    mean = rng.exponential(1.0, 400)
    expected = mean * rng.gamma(4.0, 0.25, (200, 400))
    expected *= photons / expected.sum(axis=1, keepdims=True)
    return rng.poisson(expected).astype(np.float64), expected, mean


@pytest.mark.parametrize('photons', [400.0, 4e5])
def test_an_exact_prediction_explains_the_whole_signal_at_any_dose(photons: float) -> None:
    counts, expected, mean = patterns(photons)
    found = agreement(counts, expected, mean)
    assert found.share == pytest.approx(1.0, abs=0.1)
    assert found.correlation < 1.0 if photons > 1e4 else found.correlation < 0.6  # photon noise is not predicted


def test_the_mean_pattern_and_a_wrong_object_explain_nothing() -> None:
    counts, expected, mean = patterns(4e4)
    assert agreement(counts, np.broadcast_to(mean, counts.shape), mean).correlation == pytest.approx(0.0, abs=0.01)
    assert agreement(counts, np.roll(expected, 1, axis=0), mean).share < 0.01


def test_the_scale_of_a_prediction_does_not_count() -> None:
    counts, expected, mean = patterns(4e4)
    assert agreement(counts, 7 * expected, 3 * mean).correlation == pytest.approx(
        agreement(counts, expected, mean).correlation
    )


def test_the_lead_is_counted_in_standard_errors() -> None:
    counts, expected, mean = patterns(4e4)
    exact, wrong = agreement(counts, expected, mean), agreement(counts, np.roll(expected, 1, axis=0), mean)
    assert lead_of(exact, wrong) > 20
    assert lead_of(wrong, exact) < -20
    assert join([exact, wrong]).product.size == 400


@pytest.fixture(scope='module')
def faint() -> RawScan:
    """A scan of 3,000 photons a pattern."""
    return make_scan(rows=9, photons=3e3)[0]


def test_held_out_patterns_are_predicted_by_the_right_positions_only(faint: RawScan) -> None:
    held = HoldOut(faint, CPU, HoldOutPlan(used_folds=1))
    right = held.agreement()
    swapped = held.agreement(positions=faint.positions[:, ::-1])
    assert held.held_out.size == right.product.size == 21
    assert right.correlation > 0.2
    assert lead_of(right, swapped) > 4


def test_a_reconstruction_with_the_wrong_sign_of_the_defocus_is_rejected_though_it_fits(faint: RawScan) -> None:
    config = RefinementConfig(refine_epochs=30)
    verdicts = {}
    for name, probe in (('right', faint.probe), ('reversed', reversed_defocus(faint.probe))):
        tensors = ScanTensors(faint, CPU)
        with torch.inference_mode():
            state = Solver(tensors, initial_state(tensors, probe), config, 64).run(lambda _epoch, _deviance: False)
        verdicts[name] = verify(faint, state.probe.numpy(), state.positions.numpy(), CPU).credibility
    assert verdicts['right'].colour == 'green'
    assert verdicts['right'].sentence.startswith('Credible')
    assert verdicts['reversed'].colour == 'red'
    assert verdicts['reversed'].cause == 'reversed'
    assert 'the defocus of the probe has the wrong sign' in verdicts['reversed'].sentence


def sums(product: float, seed: int = 1, count: int = 40) -> Agreement:
    spread = 1 + 0.1 * np.random.default_rng(seed).standard_normal(count)
    ones = np.ones(count)
    return Agreement(product * spread, ones, ones, 0.1 * ones)


def test_colours_follow_the_thresholds() -> None:
    ideal, bad = sums(0.8), {'reversed': sums(0.0)}
    assert credibility(sums(0.75), ideal, bad).colour == 'green'
    assert credibility(sums(0.5), ideal, bad).colour == 'yellow'
    assert credibility(sums(0.2), ideal, bad).colour == 'red'
    undecided = credibility(sums(0.75), ideal, {'reversed': sums(0.74, seed=2)})
    assert undecided.colour == 'yellow' and undecided.sentence.startswith('Not decided')
    worse = credibility(sums(0.2), ideal, {'flipped and reversed': sums(0.7)})
    assert worse.colour == 'red' and worse.cause == 'flipped and reversed'
    assert 'flipped, and the defocus' in worse.sentence


def test_a_sign_that_only_the_refined_probe_supports_is_wrong() -> None:
    own, ideal, worse = sums(0.1), sums(0.1), {'reversed': sums(0.02, seed=2)}
    assert credibility(own, ideal, worse).colour == 'green', 'a refined probe predicts noise as well'
    contradicting = UnrefinedProbes(same=sums(0.0, seed=3), other=sums(0.099, seed=4))
    alternatives = {'reversed': contradicting.other}
    found = credibility(own, ideal, alternatives, contradicting)
    assert found.colour == 'red' and found.cause == 'reversed'
    assert credibility(own, ideal, worse, contradicting).colour == 'yellow', 'the refined probe is certainly better'
    agreeing = UnrefinedProbes(same=sums(0.09, seed=3), other=sums(0.0, seed=4))
    assert credibility(own, ideal, worse, agreeing).colour == 'green'


def test_at_1000_photons_a_probe_that_adapted_to_the_wrong_sign_is_rejected() -> None:
    _, scan = known_scan(103, 1e3, 'photograph')
    config = parse_config({'inference': {'threads': 1}})
    colours = {}
    for name, probe in (('right', scan.probe), ('reversed', reversed_defocus(scan.probe))):
        metrics = refine(replace(scan, probe=probe), config).metrics
        assert metrics is not None and metrics.credibility is not None
        colours[name] = metrics.credibility.colour
    assert colours == {'right': 'green', 'reversed': 'red'}
