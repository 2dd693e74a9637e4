"""The fingerprint of a run: everything that two runs must have in common, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ptychopinn_torch_plugin.config import parse_config
from ptychopinn_torch_plugin.data.scan import RawScan
from ptychopinn_torch_plugin.training import resume
from ptychopinn_torch_plugin.training.resume import fingerprint_of
from tests.helpers.scans import make_scan


@pytest.fixture(scope='module')
def scan() -> RawScan:
    return make_scan((16, 16), rows=3)[0]


def with_count(scan: RawScan, number: int) -> RawScan:
    counts = scan.counts.copy()
    counts[number, 8, 8] += 1
    return replace(scan, counts=counts)


def test_every_part_of_a_scan_counts(scan: RawScan) -> None:
    mask = scan.bad_pixels.copy()
    mask[0, 0] = True
    changed = [
        scan,
        *(with_count(scan, number) for number in range(scan.size)),
        replace(scan, positions=scan.positions + 1e-9),
        replace(scan, probe=2 * scan.probe),
        replace(scan, probe=scan.probe.astype(np.complex64)),
        replace(scan, bad_pixels=mask),
        replace(scan, object_guess=1j * scan.object_guess),
        replace(scan, name='another'),
        replace(scan, fresnel_numbers=(0.0, 1e-9)),
        scan.select(np.arange(scan.size - 1)),
    ]
    digests = [resume._digest(one) for one in changed]
    assert len(set(digests)) == len(changed)
    assert resume._digest(replace(scan, counts=scan.counts.copy())) == digests[0]
    assert all(len(digest) == 32 for digest in digests)


def test_of_a_large_scan_some_patterns_count(scan: RawScan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evenly spread, the first and the last among them: 0, 4 and 8 of 9."""
    assert resume.FINGERPRINT_PATTERNS == 256
    monkeypatch.setattr(resume, 'FINGERPRINT_PATTERNS', 3)
    digest = resume._digest(scan)
    differing = [number for number in range(scan.size) if resume._digest(with_count(scan, number)) != digest]
    assert differing == [0, 4, 8]


def test_settings_that_change_the_result_count(scan: RawScan) -> None:
    def fingerprint(**training: object) -> dict[str, object]:
        return fingerprint_of(parse_config({'training': training}), [scan])

    start = fingerprint(scheduler='constant')
    assert start['training.scheduler'] == 'constant'
    assert start['torch'] == torch.__version__
    assert start['scans'] == [resume._digest(scan)]
    assert 'training.epochs' not in start
    assert fingerprint(scheduler='constant', epochs=7) == start
    assert fingerprint(scheduler='constant', threads=3, resume='must', early_stop_patience=9) == start
    assert fingerprint(scheduler='constant', learning_rate=0.5) != start
    assert fingerprint(scheduler='exponential')['training.scheduler'] == 'exponential'
    lengths = [fingerprint(scheduler='warmup-cosine', epochs=epochs).get('training.epochs') for epochs in (7, 8)]
    assert lengths == [7, 8]


def test_the_first_difference_is_named() -> None:
    difference = resume._difference
    assert difference({'a': 1, 'b': 2}, {'a': 1, 'b': 2}) is None
    assert difference({'a': 1, 'b': 2}, {'a': 1, 'b': 3}) == 'b was 2 and is 3'
    assert difference({'b': 2}, {'a': 1, 'b': 3}) == 'a was None and is 1'
    assert difference({'a': 'ä', 'b': 2}, {'b': 2}) == "a was '\\\\xe4' and is None".replace('\\\\', '\\')
    assert difference({'scans': [1]}, {'scans': [2]}) == 'it belongs to other scans'
