"""Batches: groups of neighbouring positions, each with an object array of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from ..config import DataConfig
from ..data.grouping import compact_windows, draw_groups
from ..data.sharding import processes, share_of
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
    weight: float = 1.0
    """Factor of the loss: with it, the mean over the processes is that over all groups of the step."""


def make_batch(
    scan: TrainingScan, inputs: npt.NDArray[np.integer], scored: npt.NDArray[np.integer] | None = None
) -> TrainingBatch:
    """Return the groups ``inputs`` ``(B, C)``, scored by ``scored`` ``(B, K)``, or by the inputs if None."""
    together = inputs if scored is None else np.concatenate([inputs, scored], axis=1)
    extents = [extent_of(scan.patch_origins[group], scan.tensors.pattern_shape) for group in together]
    return _make_batch(scan, inputs, scored, [origin for origin, _ in extents], _common_shape(extents))


def make_part(scan: TrainingScan, groups: npt.NDArray[np.integer], rank: int, size: int) -> TrainingBatch:
    """Return the part of process ``rank`` of the groups ``(B, C)`` of one step of ``size`` processes.

    Its object arrays have the shape that all groups of the step need, so that the network computes the same as in one
    process. A process without a part gets the first group, with the weight 0.
    """
    part = share_of(len(groups), rank, size)
    extents = [extent_of(scan.patch_origins[group], scan.tensors.pattern_shape) for group in groups]
    chosen = slice(part.start, part.stop) if part else slice(1)
    origins = [origin for origin, _ in extents[chosen]]
    batch = _make_batch(scan, groups[chosen], None, origins, _common_shape(extents))
    return batch._replace(weight=len(part) * size / len(groups))


def _make_batch(
    scan: TrainingScan,
    inputs: npt.NDArray[np.integer],
    scored: npt.NDArray[np.integer] | None,
    origins: Sequence[tuple[int, int]],
    shape: tuple[int, int],
) -> TrainingBatch:
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


class GroupSampler(Sampler[tuple[int, npt.NDArray[np.int32]]]):
    """Groups drawn anew in every epoch, from the training positions of every scan.

    Yields the number of a scan and the groups ``(B, C)`` of one batch. Lightning calls :meth:`set_epoch`.

    Args:
        scans: the scans.
        positions: training positions of each scan.
        config: group size, neighbours, groups per epoch.
        batch_size: groups per batch.
        seed: with the number of the epoch it determines every draw.
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
        self.resume(0)

    def resume(self, epoch: int) -> None:
        """Continue after so many finished epochs."""
        self._first_epoch = self._epoch = epoch

    def set_epoch(self, epoch: int) -> None:
        """Set the number of the epoch, from 0, not counting those before a resume."""
        self._epoch = self._first_epoch + epoch

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return sum(-(-self._group_count(number) // self._batch_size) for number in range(len(self._scans)))

    def __iter__(self) -> Iterator[tuple[int, npt.NDArray[np.int32]]]:
        """Yield the batches of the epoch, scans in random order."""
        rng = np.random.default_rng((self._seed, self._epoch))
        batches = [
            (number, groups[first : first + self._batch_size])
            for number in range(len(self._scans))
            for groups in [self._groups(number, rng)]
            for first in range(0, len(groups), self._batch_size)
        ]
        for chosen in rng.permutation(len(batches)):
            yield batches[chosen]

    def _groups(self, number: int, rng: np.random.Generator) -> npt.NDArray[np.int32]:
        """Draw the groups of one scan, ``(S, C)``."""
        members = self._positions[number]
        count = self._group_count(number)
        if self._config.sequential_sampling:
            # In the order of the scan; every epoch begins where the one before has ended.
            anchors = members[(self._epoch * count + np.arange(count)) % members.size]
        else:
            # Without replacement while positions are left: an epoch covers the scan.
            rounds = [rng.permutation(members) for _ in range(-(-count // members.size))]
            anchors = np.concatenate(rounds)[:count]
        return draw_groups(
            self._scans[number].tensors.scan.positions,
            self._group_size(number),
            min(self._config.neighbor_count, members.size - 1),
            anchors=anchors,
            candidates=members,
            rng=rng,
        )

    def _group_count(self, number: int) -> int:
        return self._config.groups_per_epoch or -(-self._positions[number].size // self._group_size(number))

    def _group_size(self, number: int) -> int:
        return min(self._config.group_size, self._positions[number].size)


class GroupDataset(Dataset[TrainingBatch]):
    """The batch of every item of a :class:`GroupSampler`, or this process's part of it."""

    def __init__(self, scans: Sequence[TrainingScan]) -> None:
        self._scans = scans
        # Numbers, because a loader process does not know the processes that train together.
        self._rank, self._size = processes().rank, processes().size

    def __getitem__(self, item: tuple[int, npt.NDArray[np.int32]]) -> TrainingBatch:
        """Make the batch of the groups ``(B, C)`` of one scan."""
        number, groups = item
        return make_part(self._scans[number], groups, self._rank, self._size)


class TrainingBatches:
    """The batches of a :class:`GroupSampler`, made in this process; Lightning finds the sampler by its name."""

    def __init__(self, dataset: GroupDataset, sampler: GroupSampler) -> None:
        self._dataset = dataset
        self.sampler = sampler

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[TrainingBatch]:
        """Yield the batches of the epoch."""
        return map(self._dataset.__getitem__, self.sampler)


class ValidationBatches:
    """Windows in which the network receives the training positions and the held-out ones are scored.

    Several processes score different windows. They score equally many, because each step of a validation asks all of
    them whether to stop: some repeat a window, with the weight 0.

    Args:
        scans: the scans.
        held_out: held-out positions of each scan.
        group_size: size of the groups of the training.
        should_stop: whether the run was asked to stop: the windows end early then.
    """

    def __init__(
        self,
        scans: Sequence[TrainingScan],
        held_out: Sequence[npt.NDArray[np.integer]],
        group_size: int,
        should_stop: Callable[[], bool],
    ) -> None:
        self._should_stop = should_stop
        size = max(group_size, MIN_VALIDATION_WINDOW)
        windows = [
            (scan, window[~out], window[out])
            for scan, positions in zip(scans, held_out, strict=True)
            for window in compact_windows(scan.tensors.scan.positions, min(size, scan.tensors.size))
            for out in [np.isin(window, positions)]
            if out.any() and not out.all()
        ]
        together = processes()
        most = -(-len(windows) // together.size)
        self._own = len(range(together.rank, len(windows), together.size))
        self._windows = windows[together.rank :: together.size] + windows[: most - self._own]

    def __len__(self) -> int:
        """Return the number of windows of this process."""
        return len(self._windows)

    def __iter__(self) -> Iterator[TrainingBatch]:
        """Yield one batch of one window each; the same in every epoch."""
        for number, (scan, inputs, scored) in enumerate(self._windows):
            if self._should_stop():
                return
            yield make_batch(scan, inputs[None], scored[None])._replace(weight=float(number < self._own))
