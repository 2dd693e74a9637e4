"""Model files and settings files written by version 0.1 still load and mean the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ptychodus.model import ModelCore

from ptychopinn_torch_plugin.engines.pipeline import reconstruct
from ptychopinn_torch_plugin.storage.model_file import load_model
from tests.helpers.scans import make_scan
from tests.training.runs import small

FILES = Path(__file__).parent / 'files_of_0_1'


@pytest.mark.parametrize(('generator', 'steps'), [('unrolled', 2), ('patch', 0)])
def test_a_model_of_0_1_reconstructs_the_same_object(generator: str, steps: int) -> None:
    scan, _ = make_scan()
    config = small(
        inference={'steps': steps, 'threads': 1, 'accelerator': 'cpu'},
        refinement={'refine_epochs': 0},
    )
    found = reconstruct(scan, load_model(FILES / f'{generator}.safetensors'), config)
    with np.load(FILES / 'objects.npz') as expected:
        np.testing.assert_allclose(found.object_array, expected[generator], rtol=0, atol=2e-4)


def test_a_settings_file_of_0_1_is_read() -> None:
    registry = ModelCore(FILES / 'settings.ini').settings_registry
    values = {
        ('Training', 'epochs'): 7,
        ('Training', 'learning_rate'): 0.002,
        ('Probe', 'mask_radius'): 11.5,
        ('Model', 'generator'): 'patch',
    }
    for (group, name), expected in values.items():
        value = registry[f'PtychoPINNPyTorch{group}'].parameters()[name].get_value()
        assert str(value) == str(expected) or float(value) == expected
