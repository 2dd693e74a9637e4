"""A model is compared with the scan that it would reconstruct."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ptychopinn_torch_plugin.storage.model_facts import ScanFacts, differences, read_facts

MODEL = Path(__file__).parents[1] / 'files_of_0_1' / 'unrolled.safetensors'


def test_the_scan_of_the_training_does_not_differ() -> None:
    model = read_facts(MODEL)
    assert model.probe.dtype == np.complex64
    shifted = np.roll(model.probe, 2, axis=-1) * 7
    assert differences(model, ScanFacts(model.header.photons_per_frame, shifted)) == []


def test_a_pixel_size_that_a_file_does_not_tell_is_no_difference() -> None:
    """Model files of version 0.1, and scans without a geometry, have no pixel size."""
    model = read_facts(MODEL)
    assert model.header.object_pixel_m is None
    scan = ScanFacts(model.header.photons_per_frame, model.probe, (2e-8, 2e-8))
    assert differences(model, scan) == []
    known = replace(model, header=model.header.model_copy(update={'object_pixel_m': (2e-8, 2e-8)}))
    assert differences(known, replace(scan, pixel_m=None)) == []
    assert differences(known, replace(scan, pixel_m=(2.01e-8, 1.99e-8))) == []
    (sentence,) = differences(known, replace(scan, pixel_m=(2e-8, 2.1e-8)))
    assert 'object pixels of 20 x 20 nm (height x width), this scan has 20 x 21 nm' in sentence


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
