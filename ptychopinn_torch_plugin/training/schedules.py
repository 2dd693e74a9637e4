"""The optimiser, and how its learning rate changes over a run: torch's own classes, chosen by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ExponentialLR, LambdaLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

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
"""Epochs without a better monitored loss after which the rate is halved."""


def make_optimizer(parameters: Iterable[Any], config: Config) -> Optimizer:
    """Return AdamW (I. Loshchilov & F. Hutter, arXiv:1711.05101) at the largest rate of the schedule.

    Args:
        parameters: parameters, or groups of them as torch defines them; a group's own ``lr`` wins.
        config: its ``training.learning_rate`` is used.
    """
    return torch.optim.AdamW(parameters, lr=config.training.learning_rate)


def make_schedule(optimizer: Optimizer, config: Config, steps: int) -> Schedule | None:
    """Return the schedule that ``config.training.scheduler`` names, for a run of ``steps`` optimiser steps.

    ``one-cycle`` (L. N. Smith & N. Topin, arXiv:1708.07120), ``exponential`` and ``warmup-cosine`` (I. Loshchilov &
    F. Hutter, arXiv:1608.03983) are stepped after every optimiser step, ``plateau`` after every epoch with its
    monitored loss. Every group of the optimiser follows the schedule from its own rate.

    Returns:
        None for ``constant``.
    """
    makers: dict[str, Callable[[Optimizer, int], Schedule | None]] = {
        'one-cycle': _one_cycle,
        'exponential': lambda optimizer, steps: ExponentialLR(optimizer, gamma=EXPONENTIAL_END ** (1 / steps)),
        'warmup-cosine': _warmup_cosine,
        'constant': lambda optimizer, steps: None,
        'plateau': lambda optimizer, steps: ReduceLROnPlateau(
            optimizer, mode=config.execution.checkpoint_mode, factor=PLATEAU_FACTOR, patience=PLATEAU_PATIENCE
        ),
    }
    return makers[config.training.scheduler](optimizer, max(1, steps))


def depends_on_length(config: Config) -> bool:
    """Return whether the schedule depends on the number of epochs."""
    return config.training.scheduler not in ('constant', 'plateau')


def fast_forward(optimizer: Optimizer, schedule: Schedule | None, steps: int, losses: Iterable[float]) -> None:
    """Set the rates to those after the epochs of a stopped run; a schedule has no other state.

    Args:
        optimizer: newly made.
        schedule: its schedule, newly made.
        steps: optimiser steps of the run.
        losses: monitored loss of each of its epochs.
    """
    if isinstance(schedule, ReduceLROnPlateau):
        for loss in losses:
            schedule.step(loss)
    elif schedule is not None:
        optimizer.step()  # no effect without gradients; torch warns about a schedule that is stepped first
        for _ in range(steps):
            schedule.step()


def _one_cycle(optimizer: Optimizer, steps: int) -> LRScheduler:
    total = max(3, steps)
    # A run of a few steps still needs one of them to rise on.
    rise = max(0.2, 2 / total)
    rates = [group['lr'] for group in optimizer.param_groups]
    return OneCycleLR(optimizer, max_lr=rates, total_steps=total, pct_start=rise)


def _warmup_cosine(optimizer: Optimizer, steps: int) -> LRScheduler:
    warm = max(1, round(WARMUP_SHARE * steps))
    fall = max(1, steps - warm)

    def factor(step: int) -> float:
        if step < warm:
            return WARMUP_START + (1 - WARMUP_START) * step / warm
        return (1 + math.cos(math.pi * (step - warm) / fall)) / 2

    return LambdaLR(optimizer, factor)
