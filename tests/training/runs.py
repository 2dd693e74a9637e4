"""Small training runs for tests: a configuration that takes seconds, and an observer that remembers and stops."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from ptychopinn_torch_plugin.config import Config, parse_config
from ptychopinn_torch_plugin.observer import SilentObserver


class Recorder(SilentObserver):
    """Remembers everything; stops after ``stop_after`` reports of progress."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.progress: list[tuple[int, int]] = []
        self.losses: list[tuple[int, float, float | None]] = []
        self.stages: list[str] = []
        self.previews: list[npt.NDArray[np.complex64]] = []
        self._stop_after = stop_after

    def on_stage(self, stage: str) -> None:
        self.stages.append(stage)

    def on_preview(self, object_array: npt.NDArray[np.complex64]) -> None:
        self.previews.append(object_array)

    def on_progress(self, done: int, goal: int) -> None:
        self.progress.append((done, goal))

    def on_losses(self, epoch: int, training: float, validation: float | None) -> None:
        self.losses.append((epoch, training, validation))

    def should_stop(self) -> bool:
        return self._stop_after is not None and len(self.progress) >= self._stop_after


def small(**parts: Mapping[str, object]) -> Config:
    """Three epochs of two steps on the scan of :func:`tests.helpers.scans.make_scan`, with ``parts`` changed."""
    tree: dict[str, Mapping[str, object]] = {
        'data': {'group_size': 12, 'neighbor_count': 15},
        'model': {'steps': 2, 'width': 8, 'levels': 2},
        'training': {'epochs': 3, 'batch_size': 2, 'learning_rate': 3e-3, 'accelerator': 'cpu'}
        | {'threads': 1, 'probe_trainable': False},
    }
    return parse_config({name: {**tree.get(name, {}), **parts.get(name, {})} for name in tree.keys() | parts.keys()})
