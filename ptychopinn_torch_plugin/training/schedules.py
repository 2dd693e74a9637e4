"""The optimiser, and how its learning rate changes over a run: torch's own classes, chosen by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    ExponentialLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)

from ..config import Config

Schedule = LRScheduler | ReduceLROnPlateau

EXPONENTIAL_END = 0.01
"""Rate at the end of an exponential schedule, relative to its start."""
WARMUP_SHARE = 0.05
"""Share of the steps that the warm-up takes."""
WARMUP_START = 0.04
"""Rate at the start of the warm-up, relative to its end; that of the one-cycle schedule."""
PLATEAU_FACTOR = 0.5
PLATEAU_PATIENCE = 5
"""Epochs without a better judging loss after which the rate is halved."""


def make_optimizer(parameters: Iterable[Any], config: Config) -> Optimizer:
    """AdamW (I. Loshchilov & F. Hutter, arXiv:1711.05101) at the largest rate of the schedule.

    Args:
        parameters: parameters, or groups of them as torch knows them; a group's own ``lr`` wins.
        config: its ``training.learning_rate`` is used.
    """
    return torch.optim.AdamW(parameters, lr=config.training.learning_rate)


def make_schedule(optimizer: Optimizer, config: Config, steps: int) -> Schedule | None:
    """The schedule that ``config.training.scheduler`` names, for a run of ``steps`` optimiser steps.

    ``one-cycle`` (L. N. Smith & N. Topin, arXiv:1708.07120), ``exponential`` and ``warmup-cosine`` (I. Loshchilov &
    F. Hutter, arXiv:1608.03983) are to be stepped after every optimiser step, ``plateau`` with the judging loss of
    every epoch. Every group of the optimiser goes through it from its own rate.

    Returns:
        None for ``constant``.
    """
    makers: dict[str, Callable[[Optimizer, int], Schedule | None]] = {
        'one-cycle': _one_cycle,
        'exponential': _exponential,
        'warmup-cosine': _warmup_cosine,
        'constant': lambda optimizer, steps: None,
        'plateau': lambda optimizer, steps: ReduceLROnPlateau(
            optimizer, mode=config.execution.checkpoint_mode, factor=PLATEAU_FACTOR, patience=PLATEAU_PATIENCE
        ),
    }
    return makers[config.training.scheduler](optimizer, max(1, steps))


def depends_on_length(config: Config) -> bool:
    """Whether the schedule is another one for another number of epochs."""
    return config.training.scheduler not in ('constant', 'plateau')


def lightning_form(optimizer: Optimizer, schedule: Schedule | None) -> dict[str, Any]:
    """What ``configure_optimizers`` returns: Lightning steps what follows the optimiser's steps.

    A plateau is left out: :class:`~.callbacks.CourseCallback` steps it, so that the state written at the end of an
    epoch holds it.
    """
    if schedule is None or isinstance(schedule, ReduceLROnPlateau):
        return {'optimizer': optimizer}
    return {'optimizer': optimizer, 'lr_scheduler': {'scheduler': schedule, 'interval': 'step'}}


def _one_cycle(optimizer: Optimizer, steps: int) -> LRScheduler:
    total = max(3, steps)
    # A run of a few steps still needs one of them to rise on.
    rise = max(0.2, 2 / total)
    rates = [group['lr'] for group in optimizer.param_groups]
    return OneCycleLR(optimizer, max_lr=rates, total_steps=total, pct_start=rise)


def _exponential(optimizer: Optimizer, steps: int) -> LRScheduler:
    return ExponentialLR(optimizer, gamma=EXPONENTIAL_END ** (1 / steps))


def _warmup_cosine(optimizer: Optimizer, steps: int) -> LRScheduler:
    warm = max(1, round(WARMUP_SHARE * steps))
    return SequentialLR(
        optimizer,
        [
            LinearLR(optimizer, start_factor=WARMUP_START, total_iters=warm),
            CosineAnnealingLR(optimizer, T_max=max(1, steps - warm)),
        ],
        milestones=[warm],
    )
