"""The configuration tree: frozen, closed, and clear about what it refuses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from ptychopinn_torch_plugin.config import Config, parse_config
from ptychopinn_torch_plugin.errors import ConfigurationError
from ptychopinn_torch_plugin.estimate import START_S, Calibration, Device, ScanSize, raw_seconds, sentence
from ptychopinn_torch_plugin.presets import PRESETS, matching_preset, preset_settings, preset_tree


def test_defaults_are_usable_and_frozen() -> None:
    config = parse_config({})
    assert config == Config()
    with pytest.raises(ValidationError):
        config.training.epochs = 3  # type: ignore[misc]


def test_it_survives_json() -> None:
    config = parse_config({'data': {'group_size': 4, 'neighbor_count': 7}, 'training': {'likelihood': 'poisson'}})
    assert Config.model_validate_json(config.model_dump_json()) == config != Config()


@pytest.mark.parametrize(
    ('tree', 'message'),
    [
        ({'training': {'epochs': 0}}, 'training.epochs = 0'),
        ({'training': {'epoch': 5}}, 'training.epoch = 5'),
        ({'trainings': {}}, 'trainings'),
        ({'training': {'learning_rate': float('nan')}}, 'learning_rate'),
        ({'training': {'accelerator': 'gpu9'}}, "accelerator = 'gpu9'.*'cuda'"),
        ({'training': {'devices': 65}}, 'devices = 65'),
        ({'data': {'group_size': 9, 'neighbor_count': 7}}, 'neighbor_count = 7 is too few for groups of 9.*at least 8'),
        ({'model': {'generator': 'autoencoder'}}, "generator = 'autoencoder'"),
    ],
)
def test_what_cannot_be_used_is_named(tree: dict[str, dict[str, object]], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        parse_config(tree)


def test_every_fault_is_reported_at_once() -> None:
    with pytest.raises(ConfigurationError, match='data.group_size.*training.seed'):
        parse_config({'data': {'group_size': -1}, 'training': {'seed': -1}})


@pytest.mark.parametrize(('before', 'now'), [(True, 'always'), (False, 'auto'), ('False', 'auto'), ('never', 'never')])
def test_the_switch_of_before_is_read(before: object, now: str) -> None:
    assert parse_config({'inference': {'use_model_probe': before}}).inference.use_model_probe == now


def test_a_misspelt_name_gets_a_suggestion() -> None:
    with pytest.raises(
        ConfigurationError, match=r'training.epoch = 3: there is no such setting: did you mean "epochs"\?$'
    ):
        parse_config({'training': {'epoch': 3}})
    with pytest.raises(ConfigurationError, match='there is no such section: did you mean "training"'):
        parse_config({'trainig': {}})


@pytest.mark.parametrize('name', PRESETS)
def test_every_preset_is_a_valid_configuration(name: str) -> None:
    config = parse_config(preset_tree(name))
    values = {key: getattr(getattr(config, key[0]), key[1]) for key in preset_settings(name)}
    assert values == preset_settings(name)
    assert matching_preset(values) == name


def test_an_estimate_grows_with_the_work_and_follows_the_last_run() -> None:
    scan, config, calibration = ScanSize(516, 128, 128, 1), Config(), Calibration()
    device = Device(is_gpu=False, cores=2)
    seconds = raw_seconds('train', scan, config, device)
    assert raw_seconds('refine', scan, config, device) < seconds
    assert 2 * 60 < seconds < 20 * 60
    calibration.add('train', device, seconds, 2 * seconds - START_S)
    assert calibration.factor('train', device) == pytest.approx(2)
    text = sentence('refine', scan, parse_config({'inference': {'threads': 2, 'accelerator': 'cpu'}}), calibration)
    assert text.startswith('516 patterns of 128 x 128 pixels, one probe mode: 60 epochs, about ')
    assert 'on this CPU (2 cores), ' in text


PACKAGE = Path(__file__).parents[1] / 'ptychopinn_torch_plugin'
QUOTED = re.compile(r'"([A-Z][a-z]+(?: [a-zA-Z_()]+)+)"')
"""A label in a message: two words or more between double quotes."""


@pytest.mark.parametrize('module', ['engines/memory', 'worker/parent', 'metrics/credibility', 'report/advice'])
def test_messages_name_labels_of_the_panel(module: str) -> None:
    labels = {
        field.title for section in Config.model_fields.values() for field in section.default.model_fields.values()
    }
    text = (PACKAGE / f'{module}.py').read_text()
    for stage in ('{self._stage}', '{stage}'):
        text = text.replace(stage, 'training')
    named = set(QUOTED.findall(text))
    assert named
    assert named <= labels
