"""Batches: which groups an epoch has."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ptychopinn_torch_plugin.config import DataConfig
from ptychopinn_torch_plugin.data.tensors import ScanTensors, initial_state
from ptychopinn_torch_plugin.training.batches import GroupSampler, TrainingScan, ValidationBatches
from tests.helpers.scans import make_scan


@pytest.fixture(scope='module')
def scan() -> TrainingScan:
    tensors = ScanTensors(make_scan()[0], torch.device('cpu'))
    return TrainingScan(tensors, initial_state(tensors))


def anchors_of(sampler: GroupSampler) -> list[int]:
    return [anchor for _, groups in sampler for anchor in groups[:, 0].tolist()]


def test_sequential_anchors_continue_from_epoch_to_epoch_and_after_a_resume(scan: TrainingScan) -> None:
    config = DataConfig(group_size=1, neighbor_count=0, groups_per_epoch=6, sequential_sampling=True)
    sampler = GroupSampler([scan], [np.arange(10)], config, batch_size=6, seed=0)
    epochs = []
    for epoch in (0, 1, 2):
        sampler.set_epoch(epoch)
        epochs.append(anchors_of(sampler))
    assert epochs == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 0, 1], [2, 3, 4, 5, 6, 7]]
    sampler.resume(1)
    sampler.set_epoch(1)
    assert anchors_of(sampler) == epochs[2]


def test_an_epoch_has_every_training_position_as_an_anchor_and_no_other_position(scan: TrainingScan) -> None:
    members = np.arange(5, 30)
    config = DataConfig(group_size=4, neighbor_count=6, groups_per_epoch=25)
    sampler = GroupSampler([scan, scan], [members, members[:9]], config, batch_size=10, seed=0)
    batches = list(sampler)
    assert len(batches) == len(sampler) == 6
    first = np.concatenate([groups for number, groups in batches if number == 0])
    assert sorted(first[:, 0]) == members.tolist()
    assert np.isin(first, members).all()
    assert np.isin(np.concatenate([groups for number, groups in batches if number == 1]), members[:9]).all()
    sampler.set_epoch(1)
    assert anchors_of(sampler) != [anchor for _, groups in batches for anchor in groups[:, 0].tolist()]


def test_the_validation_has_every_held_out_position_once_and_ends_when_the_run_is_asked_to_stop(
    scan: TrainingScan,
) -> None:
    held_out = np.array([3, 20, 21, 48])
    answers = iter([False] * 100)
    batches = ValidationBatches([scan], [held_out], 12, lambda: next(answers))
    assert len(batches) == 2
    assert sum(batch.scored.amplitudes.shape[1] for batch in batches) == len(held_out)
    assert sum(batch.inputs.amplitudes.shape[1] for batch in batches) == scan.tensors.size - len(held_out)
    answers = iter([False, True])
    assert len(list(batches)) == 1
