"""Batches: groups of neighbouring positions, each with an object array of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from ..config import DataConfig
from ..data.grouping import compact_windows, draw_groups
from ..data.tensors import Extent, ScanTensors, extent_of, patch_origins_of
from ..physics.forward import PatternBatch
from ..physics.patches import extract_window
from ..types import ReconstructionState

OBJECT_MULTIPLE = 8
"""Sides of object arrays are rounded up to this: fewer different shapes, and fast Fourier lengths."""
MIN_VALIDATION_WINDOW = 32
"""Validation windows hold at least so many positions, or held-out ones would have no neighbours in them."""


class TrainingScan:
    """One scan in training: its data, and its state, which the calibration replaces.

    Args:
        tensors: the scan on its device.
        state: probe, positions and intensities; its object is not used.
    """

    def __init__(self, tensors: ScanTensors, state: ReconstructionState) -> None:
        self.tensors = tensors
        self.state = state

    @property
    def state(self) -> ReconstructionState:
        """Probe, positions and intensities."""
        return self._state

    @state.setter
    def state(self, state: ReconstructionState) -> None:
        self._state = state
        self.patch_origins = patch_origins_of(state)
        """First object pixel (y, x) of every patch, ``(n, 2)`` int64."""


class TrainingBatch(NamedTuple):
    """Groups for one optimiser step, or for one step of the validation."""

    inputs: PatternBatch
    """Patterns that the network receives: ``B`` groups."""
    scored: PatternBatch
    """Patterns that the loss is computed from: the inputs in training, held-out positions in validation."""
    reference: Tensor
    """Reference object in the object arrays, ``(B, h, w)`` complex64; ones where none is known."""


def make_batch(
    scan: TrainingScan, inputs: npt.NDArray[np.integer], scored: npt.NDArray[np.integer] | None = None
) -> TrainingBatch:
    """Return the groups ``inputs`` ``(B, C)``, scored by ``scored`` ``(B, K)``, or by the inputs if None."""
    together = inputs if scored is None else np.concatenate([inputs, scored], axis=1)
    extents = [extent_of(scan.patch_origins[group], scan.tensors.pattern_shape) for group in together]
    origins = [origin for origin, _ in extents]
    shape = _common_shape(extents)
    guess = torch.from_numpy(scan.tensors.scan.object_guess).to(torch.complex64)
    reference = torch.stack([extract_window(guess, origin, shape) for origin in origins]).to(scan.tensors.device)
    patterns = _patterns(scan, inputs, origins)
    return TrainingBatch(patterns, patterns if scored is None else _patterns(scan, scored, origins), reference)


def _patterns(scan: TrainingScan, groups: npt.NDArray[np.integer], origins: Sequence[tuple[int, int]]) -> PatternBatch:
    flat = scan.tensors.batch(scan.state, groups.ravel(), (0, 0))
    first = torch.tensor(origins, device=scan.tensors.device)[:, None]
    return PatternBatch(
        amplitudes=flat.amplitudes.reshape(*groups.shape, *flat.amplitudes.shape[2:]),
        probes=flat.probes.reshape(*groups.shape, *flat.probes.shape[2:]),
        patch_origins=flat.patch_origins.reshape(*groups.shape, 2) - first,
        good_pixels=flat.good_pixels,
    )


def _common_shape(extents: Sequence[Extent]) -> tuple[int, int]:
    height, width = (max(extent.shape[axis] for extent in extents) for axis in (0, 1))
    return height + -height % OBJECT_MULTIPLE, width + -width % OBJECT_MULTIPLE


class TrainingBatches(IterableDataset[TrainingBatch | None]):
    """Groups drawn anew in every epoch, from the training positions of every scan.

    Args:
        scans: the scans on the device.
        positions: training positions of each scan.
        config: group size, neighbours, groups per epoch.
        batch_size: groups per batch.
        seed: with the epoch's number it fixes every draw.
    """

    def __init__(
        self,
        scans: Sequence[TrainingScan],
        positions: Sequence[npt.NDArray[np.integer]],
        config: DataConfig,
        batch_size: int,
        seed: int,
    ) -> None:
        self._scans = scans
        self._positions = positions
        self._config = config
        self._batch_size = batch_size
        self._seed = seed
        # A tensor, because it can be shared with loader processes that live through several epochs.
        self._epoch = torch.zeros((), dtype=torch.int64)
        self._learned = (0, 0)

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return sum(-(-self._group_count(index) // self._batch_size) for index in range(len(self._scans)))

    @property
    def epoch(self) -> int:
        """Number of the epoch, from 0."""
        return int(self._epoch)

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def share_epoch(self) -> None:
        """Share the number of the epoch with processes that are forked from now on."""
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]

    def skip(self, epoch: int, batches: int) -> None:
        """Begin with ``epoch``, of which the first ``batches`` batches were learned before: they come as None."""
        self.epoch = epoch
        self._learned = (epoch, batches)

    def __iter__(self) -> Iterator[TrainingBatch | None]:
        """Yield the batches of the epoch ``self.epoch``, scans in random order.

        A loader process yields its share of them, which the data loader puts back into this order.
        """
        epoch = self.epoch
        rng = np.random.default_rng((self._seed, epoch))
        drawn = [
            (index, groups)
            for index in range(len(self._scans))
            for groups in _chunks(self.groups(index, rng), self._batch_size)
        ]
        first_epoch, learned = self._learned
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for place, number in list(enumerate(rng.permutation(len(drawn))))[first::step]:
            index, groups = drawn[number]
            is_learned = epoch == first_epoch and place < learned
            yield None if is_learned else make_batch(self._scans[index], groups)

    def groups(self, index: int, rng: np.random.Generator) -> npt.NDArray[np.int32]:
        """Draw the groups of the scan ``index`` for the epoch ``self.epoch``, ``(S, C)``."""
        members = self._positions[index]
        count = self._group_count(index)
        if self._config.sequential_sampling:
            # In the order of the scan; every epoch begins where the one before has ended.
            anchors = members[(self.epoch * count + np.arange(count)) % members.size]
        else:
            # Without replacement while positions are left: an epoch covers the scan.
            rounds = [rng.permutation(members) for _ in range(-(-count // members.size))]
            anchors = np.concatenate(rounds)[:count]
        return draw_groups(
            self._scans[index].tensors.scan.positions,
            self._group_size(index),
            min(self._config.neighbor_count, members.size - 1),
            anchors=anchors,
            candidates=members,
            rng=rng,
        )

    def _group_count(self, index: int) -> int:
        return self._config.groups_per_epoch or -(-self._positions[index].size // self._group_size(index))

    def _group_size(self, index: int) -> int:
        return min(self._config.group_size, self._positions[index].size)


class ValidationBatches(IterableDataset[TrainingBatch]):
    """Windows in which the network receives the training positions and the held-out ones are scored."""

    def __init__(
        self,
        scans: Sequence[TrainingScan],
        held_out: Sequence[npt.NDArray[np.integer]],
        group_size: int,
        should_stop: Callable[[], bool],
    ) -> None:
        self._scans = scans
        self._should_stop = should_stop
        size = max(group_size, MIN_VALIDATION_WINDOW)
        self._windows = [
            (index, *window)
            for index, (scan, out) in enumerate(zip(scans, held_out, strict=True))
            for window in _validation_windows(scan, out, size)
        ]

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(self._windows)

    def __iter__(self) -> Iterator[TrainingBatch]:
        """Yield one batch of one window each; the same in every epoch. Ends early when the run is asked to stop."""
        for index, inputs, scored in self._windows:
            if self._should_stop():
                return
            yield make_batch(self._scans[index], inputs[None], scored[None])


def _validation_windows(
    scan: TrainingScan, held_out: npt.NDArray[np.integer], size: int
) -> Iterator[tuple[npt.NDArray[np.integer], npt.NDArray[np.integer]]]:
    """Yield the inputs and the scored positions of every window that has both."""
    tensors = scan.tensors
    for window in compact_windows(tensors.scan.positions, min(size, tensors.size)):
        out = np.isin(window, held_out)
        if out.any() and not out.all():
            yield window[~out], window[out]


def _chunks(groups: npt.NDArray[np.int32], size: int) -> Iterator[npt.NDArray[np.int32]]:
    for first in range(0, len(groups), size):
        yield groups[first : first + size]
