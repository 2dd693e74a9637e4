"""A model is compared with the scan that it would reconstruct."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ptychopinn_torch_plugin.host.model_facts import ScanFacts, differences, read_facts

MODEL = Path(__file__).parents[1] / 'files_of_0_1' / 'unrolled.safetensors'


def test_the_scan_of_the_training_does_not_differ() -> None:
    model = read_facts(MODEL)
    assert model.probe.dtype == np.complex64
    shifted = np.roll(model.probe, 2, axis=-1) * 7
    assert differences(model, ScanFacts(model.header.photons_per_frame, shifted)) == []


@pytest.mark.parametrize('what', ['pattern size', 'probe', 'dose'])
def test_every_difference_is_a_sentence_with_a_remedy(what: str) -> None:
    model = read_facts(MODEL)
    scan = ScanFacts(model.header.photons_per_frame, model.probe)
    other = np.zeros_like(model.probe)
    other[:, 0, 0] = 1
    changed, expected = {
        'pattern size': (replace(scan, probe=np.ones((1, 99, 98), dtype=complex)), 'this scan has 99 x 98'),
        'probe': (replace(scan, probe=other), 'The probe differs'),
        'dose': (replace(scan, photons=scan.photons / 10), 'photons per pattern'),
    }[what]
    (sentence,) = differences(model, changed)
    assert expected in sentence
