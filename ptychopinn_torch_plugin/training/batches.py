"""Batches: groups of neighbouring positions on small canvases of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from ..compat.container import PtychoDataContainerTorch
from ..config import DataConfig
from ..data.grouping import compact_windows, draw_groups
from ..data.tensors import ScanTensors
from ..physics.forward import Frames

CANVAS_MULTIPLE = 8
"""Canvas sides are rounded up to this: fewer different sizes, and fast Fourier lengths."""
MIN_VALIDATION_WINDOW = 32
"""Validation windows hold at least so many positions, or held-out ones would have no neighbours in them."""


class Batch(NamedTuple):
    """Groups that one optimiser step, or one step of the validation, works on."""

    inputs: Frames
    """What the network sees: ``B`` groups."""
    scored: Frames
    """What the prediction is judged by: the inputs themselves in training, held-out positions in validation."""
    reference: Tensor
    """Reference object on the canvases, ``(B, h, w)`` complex64; ones where none is known."""


class _Canvases:
    """Cuts groups of one scan out of its tensors."""

    def __init__(self, tensors: ScanTensors) -> None:
        self._tensors = tensors

    def batch(self, inputs: npt.NDArray[np.integer], scored: npt.NDArray[np.integer] | None = None) -> Batch:
        """Make a batch of ``inputs`` ``(B, C)`` judged by ``scored`` ``(B, K)`` (the inputs themselves if None)."""
        together = inputs if scored is None else np.concatenate([inputs, scored], axis=1)
        extents = [self._tensors.extent(group) for group in together]
        origins = [origin for origin, _ in extents]
        shape = _rounded_up(extents)
        frames = self._stack(inputs, origins)
        judged = frames if scored is None else self._stack(scored, origins)
        return Batch(frames, judged, torch.stack([self._reference(origin, shape) for origin in origins]))

    def _stack(self, groups: npt.NDArray[np.integer], origins: Sequence[npt.NDArray[np.integer]]) -> Frames:
        parts = [self._tensors.frames(group, origin) for group, origin in zip(groups, origins, strict=True)]
        return Frames(
            amplitudes=torch.cat([part.amplitudes for part in parts]),
            probes=torch.cat([part.probes for part in parts]),
            patch_origins=torch.cat([part.patch_origins for part in parts]),
            good_pixels=self._tensors.good_pixels,
        )

    def _reference(self, origin: npt.NDArray[np.integer], shape: tuple[int, int]) -> Tensor:
        grid = self._tensors.scan.object_guess
        window = np.ones(shape, dtype=np.complex64)
        first = np.maximum(origin, 0)
        last = np.minimum(origin + np.array(shape), np.array(grid.shape))
        there = tuple(slice(int(a), int(b)) for a, b in zip(first - origin, last - origin, strict=True))
        window[there] = grid[tuple(slice(int(a), int(b)) for a, b in zip(first, last, strict=True))]
        return torch.from_numpy(window).to(self._tensors.device)


def _rounded_up(extents: Sequence[tuple[npt.NDArray[np.integer], tuple[int, int]]]) -> tuple[int, int]:
    height = max(shape[0] for _, shape in extents)
    width = max(shape[1] for _, shape in extents)
    return height + -height % CANVAS_MULTIPLE, width + -width % CANVAS_MULTIPLE


class TrainingBatches(IterableDataset[Batch | None]):
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
        scans: Sequence[ScanTensors],
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
        """Batches of one epoch."""
        return sum(-(-self._groups(index) // self._batch_size) for index in range(len(self._scans)))

    @property
    def epoch(self) -> int:
        """Number of the epoch, from 0."""
        return int(self._epoch)

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def share_epoch(self) -> None:
        """Let processes that are forked from now on hear of every new epoch."""
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]

    def skip(self, epoch: int, batches: int) -> None:
        """Begin with ``epoch``, of which the first ``batches`` batches were learned before: they come as None."""
        self.epoch = epoch
        self._learned = (epoch, batches)

    def __iter__(self) -> Iterator[Batch | None]:
        """Yield the batches of the epoch ``self.epoch``, scans in random order.

        A loader process yields its share of them, which the data loader puts back into this order.
        """
        epoch = self.epoch
        rng = np.random.default_rng((self._seed, epoch))
        drawn = [
            (index, groups)
            for index in range(len(self._scans))
            for groups in _chunks(self._container(index, rng).nn_indices, self._batch_size)
        ]
        first_epoch, learned = self._learned
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for place, number in list(enumerate(rng.permutation(len(drawn))))[first::step]:
            index, groups = drawn[number]
            is_learned = epoch == first_epoch and place < learned
            yield None if is_learned else _Canvases(self._scans[index]).batch(groups)

    def _groups(self, index: int) -> int:
        return self._config.groups_per_epoch or -(-self._positions[index].size // self._size(index))

    def _size(self, index: int) -> int:
        return min(self._config.group_size, self._positions[index].size)

    def _container(self, index: int, rng: np.random.Generator) -> PtychoDataContainerTorch:
        """The groups of one scan for one epoch."""
        scan = self._scans[index].scan
        members = self._positions[index]
        count = self._groups(index)
        if self._config.sequential_sampling:
            # In the order of the scan, every epoch from where the one before has ended.
            anchors = members[(self.epoch * count + np.arange(count)) % members.size]
        else:
            # Without replacement as far as they last: an epoch sees all of the scan.
            rounds = [rng.permutation(members) for _ in range(-(-count // members.size))]
            anchors = np.concatenate(rounds)[:count]
        groups = draw_groups(
            scan.positions,
            self._size(index),
            min(self._config.neighbor_count, members.size - 1),
            anchors=anchors,
            candidates=members,
            rng=rng,
        )
        return PtychoDataContainerTorch.from_scan(scan, groups)


class ValidationBatches(IterableDataset[Batch]):
    """Windows in which the network sees the training positions and is judged by the held-out ones."""

    def __init__(
        self,
        scans: Sequence[ScanTensors],
        held_out: Sequence[npt.NDArray[np.integer]],
        group_size: int,
        should_stop: Callable[[], bool],
    ) -> None:
        self._scans = scans
        self._should_stop = should_stop
        size = max(group_size, MIN_VALIDATION_WINDOW)
        self._windows = [
            (index, *window)
            for index, (tensors, out) in enumerate(zip(scans, held_out, strict=True))
            for window in _judged_windows(tensors, out, size)
        ]

    def __len__(self) -> int:
        """Number of windows."""
        return len(self._windows)

    def __iter__(self) -> Iterator[Batch]:
        """Yield one batch of one window each; the same in every epoch. Ends early when the run shall stop."""
        for index, inputs, scored in self._windows:
            if self._should_stop():
                return
            yield _Canvases(self._scans[index]).batch(inputs[None], scored[None])


def _judged_windows(
    tensors: ScanTensors, held_out: npt.NDArray[np.integer], size: int
) -> Iterator[tuple[npt.NDArray[np.integer], npt.NDArray[np.integer]]]:
    for window in compact_windows(tensors.scan.positions, min(size, tensors.scan.size)):
        out = np.isin(window, held_out)
        if out.any() and not out.all():
            yield window[~out], window[out]


def _chunks(groups: npt.NDArray[np.int32], size: int) -> Iterator[npt.NDArray[np.int32]]:
    for first in range(0, len(groups), size):
        yield groups[first : first + size]
