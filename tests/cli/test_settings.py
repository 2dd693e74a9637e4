"""Settings of a command: presets, the settings file, and single settings; and where a result is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from ptychopinn_torch_plugin.cli.outputs import resolve_output
from ptychopinn_torch_plugin.cli.settings import read_config
from ptychopinn_torch_plugin.config import Config
from ptychopinn_torch_plugin.presets import PRESETS


@pytest.mark.parametrize('preset', PRESETS)
def test_a_preset_changes_what_it_says_and_is_overridden(preset: str, tmp_path: Path) -> None:
    config = read_config(None, [], preset=preset)
    for (section, name), value in PRESETS[preset].changes.items():
        assert getattr(getattr(config, section), name) == value
    if preset == 'balanced':
        assert config == Config()
    settings = tmp_path / 'settings.ini'
    settings.write_text('[PtychoPINNPyTorchTraining]\nepochs = 7\n')
    assert read_config(settings, [], preset=preset).training.epochs == 7
    assert read_config(settings, ['training.epochs=8'], preset=preset).training.epochs == 8


@pytest.mark.parametrize('name', ['result', 'step_0.5um', 'v1.2-final'])
def test_a_name_without_the_suffix_of_a_file_is_a_folder(name: str, tmp_path: Path) -> None:
    assert resolve_output(tmp_path / name, has_product=True) == tmp_path / name / 'product.h5'
