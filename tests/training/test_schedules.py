"""Schedules: the rates they promise, and where they go."""

from __future__ import annotations

import math
import warnings
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ptychopinn_torch_plugin.training.run import train
from ptychopinn_torch_plugin.training.schedules import (
    EXPONENTIAL_END,
    PLATEAU_PATIENCE,
    depends_on_length,
    make_optimizer,
    make_schedule,
)
from tests.helpers.scans import make_scan

from .runs import Recorder, small

STEPS = 100
RATE = 3e-3


def rates_of(name: str, steps: int = STEPS) -> list[float]:
    """The rate of every optimiser step."""
    config = small(training={'scheduler': name, 'learning_rate': RATE})
    optimizer = make_optimizer([torch.nn.Parameter(torch.ones(2))], config)
    schedule = make_schedule(optimizer, config, steps)
    assert not isinstance(schedule, ReduceLROnPlateau)
    rates = []
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for _ in range(steps):
            rates.append(optimizer.param_groups[0]['lr'])
            optimizer.step()
            if schedule is not None:
                schedule.step()
    return rates


def test_constant() -> None:
    assert rates_of('constant') == [RATE] * STEPS


def test_exponential_falls_evenly_to_its_end() -> None:
    rates = rates_of('exponential')
    assert rates[0] == RATE
    assert [b / a for a, b in pairwise(rates)] == pytest.approx([EXPONENTIAL_END ** (1 / STEPS)] * (STEPS - 1))


def test_one_cycle_rises_for_a_fifth_and_falls() -> None:
    rates = rates_of('one-cycle')
    top = rates.index(max(rates))
    assert max(rates) == pytest.approx(RATE)
    assert 18 <= top <= 20
    assert rates[0] == pytest.approx(RATE / 25)
    assert rates[-1] < 1e-4 * RATE


def test_warmup_cosine() -> None:
    rates = rates_of('warmup-cosine')
    assert rates[0] == pytest.approx(0.04 * RATE)
    assert rates[5] == pytest.approx(RATE)
    middle = 5 + (STEPS - 5) // 2
    assert rates[middle] == pytest.approx(RATE * (1 + math.cos(math.pi * (middle - 5) / 95)) / 2)
    assert rates[-1] < 1e-3 * RATE


@pytest.mark.parametrize('name', ['one-cycle', 'exponential', 'warmup-cosine', 'constant'])
@pytest.mark.parametrize('steps', [1, 2, 3])
def test_a_run_of_few_steps_has_rates_too(name: str, steps: int) -> None:
    assert all(0 < rate <= RATE for rate in rates_of(name, steps))


def test_plateau_halves_the_rate_when_nothing_improves() -> None:
    config = small(training={'scheduler': 'plateau', 'learning_rate': RATE})
    optimizer = make_optimizer([torch.nn.Parameter(torch.ones(2))], config)
    schedule = make_schedule(optimizer, config, STEPS)
    assert isinstance(schedule, ReduceLROnPlateau)
    for _ in range(PLATEAU_PATIENCE + 2):
        assert optimizer.param_groups[0]['lr'] == RATE
        schedule.step(1.0)
    assert optimizer.param_groups[0]['lr'] == RATE / 2


def test_every_group_keeps_its_own_rate() -> None:
    config = small(training={'learning_rate': RATE})
    parameters = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizer = make_optimizer([{'params': parameters[:1]}, {'params': parameters[1:], 'lr': 0.1 * RATE}], config)
    make_schedule(optimizer, config, STEPS)
    first, second = (group['lr'] for group in optimizer.param_groups)
    assert second == pytest.approx(0.1 * first)


def test_only_some_depend_on_the_number_of_epochs() -> None:
    names = ('one-cycle', 'constant', 'exponential', 'warmup-cosine', 'plateau')
    assert [name for name in names if not depends_on_length(small(training={'scheduler': name}))] == [
        'constant',
        'plateau',
    ]


@pytest.mark.parametrize('name', ['one-cycle', 'constant', 'exponential', 'warmup-cosine', 'plateau'])
def test_training_follows_the_schedule(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three epochs of two steps, each of two batches. The validation never gets better."""
    expected = [RATE] * 4 + [RATE / 2] * 2 if name == 'plateau' else rates_of(name, 6)
    monkeypatch.setattr('ptychopinn_torch_plugin.training.schedules.PLATEAU_PATIENCE', 0)
    monkeypatch.setattr('ptychopinn_torch_plugin.training.module.pinn_validation_loss', lambda *rest: torch.tensor(1.0))
    rates: list[float] = []
    step = torch.optim.AdamW.step

    def watched(self: torch.optim.AdamW, *rest: object, **options: object) -> object:
        rates.append(self.param_groups[0]['lr'])
        return step(self, *rest, **options)

    monkeypatch.setattr('torch.optim.AdamW.step', watched)
    training = {'scheduler': name, 'epochs': 3, 'batch_size': 1, 'accumulate': 2, 'learning_rate': RATE}
    train([make_scan()[0]], small(training=training), tmp_path, Recorder())
    assert len(rates) == 6
    assert rates == pytest.approx(expected)
