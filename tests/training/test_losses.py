"""The losses of training."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from ptychopinn_torch_plugin.data.grouping import draw_groups
from ptychopinn_torch_plugin.data.tensors import ScanTensors, initial_state
from ptychopinn_torch_plugin.models.base import Generator, Measurement
from ptychopinn_torch_plugin.physics.forward import PatternBatch
from ptychopinn_torch_plugin.physics.kernels.compiled import COMPILED
from ptychopinn_torch_plugin.physics.kernels.sums import Fit
from ptychopinn_torch_plugin.physics.noise_models import DEVIANCES
from ptychopinn_torch_plugin.training.batches import TrainingBatch, TrainingScan, make_batch
from ptychopinn_torch_plugin.training.losses import discounted_mean, pinn_training_loss, supervised_loss
from tests.helpers.scans import make_scan


class Scripted(Generator):
    """Yields given estimates; then takes the update at some of them, as the first part of the next step."""

    default_steps = 3

    def __init__(self, factors: tuple[float, ...], updated_at: tuple[int, ...]) -> None:
        super().__init__()
        self.factors = factors
        self.updated_at = updated_at

    def window_size(self, asked: int, trained: int) -> int:
        return asked or trained

    def unroll(self, measured: Measurement, steps: int | None = None) -> Iterator[Tensor]:
        measured.update(measured.start)
        for number, factor in enumerate(self.factors):
            estimate = measured.start * factor
            yield estimate
            if number in self.updated_at:
                measured.update(estimate)


def batch_of(*, known_object: bool = False) -> TrainingBatch:
    scan, _ = make_scan(known_object=known_object)
    tensors = ScanTensors(scan, torch.device('cpu'))
    groups = draw_groups(scan.positions, 4, 6, rng=np.random.default_rng(0))[:2]
    return make_batch(TrainingScan(tensors, initial_state(tensors)), groups)


@pytest.mark.parametrize('likelihood', sorted(DEVIANCES))
def test_every_estimate_counts_once_and_is_simulated_once(likelihood: str) -> None:
    batch, simulated = batch_of(), []

    def counted(object_array: Tensor, patterns: PatternBatch, likelihood: str, needs_update: bool) -> Fit:
        simulated.append(1)
        return COMPILED.fit(object_array, patterns, likelihood, needs_update)

    kernels = COMPILED._replace(fit=counted)
    factors = (0.7, 0.9, 1.0)
    losses = [
        float(pinn_training_loss(Scripted(factors, updated_at), batch, likelihood, kernels))
        for updated_at in ((), (0, 1), (1,))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0] == pytest.approx(losses[2], rel=1e-5)
    assert len(simulated) == 3 * (1 + 3)
    singles = [pinn_training_loss(Scripted((factor,), ()), batch, likelihood, kernels) for factor in factors]
    assert losses[0] == pytest.approx(float(discounted_mean(singles)), rel=1e-5)


def test_later_estimates_count_more() -> None:
    one, nothing = torch.tensor(1.0), torch.tensor(0.0)
    assert float(discounted_mean([nothing, one])) > float(discounted_mean([one, nothing]))
    assert float(discounted_mean([one, one, one])) == pytest.approx(1.0)


def test_the_supervised_loss_ignores_a_complex_factor_and_nothing_else() -> None:
    batch = batch_of(known_object=True)

    class Answer(Scripted):
        def unroll(self, measured: Measurement, steps: int | None = None) -> Iterator[Tensor]:
            yield batch.reference * (0.4 - 0.3j)

    assert float(supervised_loss(Answer((), ()), batch, COMPILED)) < 1e-6
    assert float(supervised_loss(Scripted((1.0,), ()), batch, COMPILED)) > 1e-3
