"""Settings are the configuration tree, seen by the host; nothing is lost or changed on the way."""

from __future__ import annotations

from pathlib import Path

import pytest
from ptychodus.api.parameters import BooleanParameter, IntegerParameter, RealParameter, StringParameter
from ptychodus.api.settings import SettingsRegistry

from ptychopinn_torch_plugin.config import Config
from ptychopinn_torch_plugin.errors import ConfigurationError
from ptychopinn_torch_plugin.host.settings import (
    SECTIONS,
    PtychoPINNSettings,
    SettingField,
    group_name,
    iter_setting_fields,
)

ALL_FIELDS = [field for section in SECTIONS for field in iter_setting_fields(section)]


@pytest.fixture
def registry() -> SettingsRegistry:
    return SettingsRegistry()


@pytest.fixture
def settings(registry: SettingsRegistry) -> PtychoPINNSettings:
    return PtychoPINNSettings(registry)


def other_value(field: SettingField) -> object:
    """A legal value, other than the default where there is another."""
    if field.kind is bool:
        return not field.default
    if field.choices:
        return field.choices[-1] if field.choices[-1] != field.default else field.choices[0]
    if field.kind is str:
        return 'other text'
    if field.name == 'smoothing' and field.section == 'refinement':
        return 2.5  # half of the default would be a strength below 0
    value = field.default * 0.5 if field.kind is float else int(field.default) + 1  # type: ignore[operator]
    return value if field.maximum is None or float(value) <= field.maximum else field.minimum


def test_groups_and_names_are_those_of_the_tree(registry: SettingsRegistry, settings: PtychoPINNSettings) -> None:
    assert {'PtychoPINNPyTorchData', 'PtychoPINNPyTorchModel', 'PtychoPINNPyTorchTraining'} < set(registry)
    assert 'model_type' not in registry[group_name('model')].parameters()
    assert {'epochs', 'batch_size', 'learning_rate', 'seed', 'accelerator', 'devices'} <= set(
        registry['PtychoPINNPyTorchTraining'].parameters()
    )
    assert {'group_size', 'neighbor_count'} <= set(registry['PtychoPINNPyTorchData'].parameters())


@pytest.mark.parametrize('field', ALL_FIELDS, ids=lambda field: f'{field.section}.{field.name}')
def test_parameter_has_the_kind_and_bounds_of_its_field(settings: PtychoPINNSettings, field: SettingField) -> None:
    parameter = settings.get_parameter(field.section, field.name)
    kinds: dict[type, type] = {
        bool: BooleanParameter,
        str: StringParameter,
        int: IntegerParameter,
        float: RealParameter,
    }
    assert isinstance(parameter, kinds[field.kind])
    assert parameter.get_value() == field.default

    if field.kind in (int, float):
        assert isinstance(parameter, IntegerParameter | RealParameter)
        assert (parameter.get_minimum(), parameter.get_maximum()) == (field.minimum, field.maximum)


def test_bounds_are_inclusive_only(settings: PtychoPINNSettings) -> None:
    fields = {field.name: field for field in iter_setting_fields('training')}
    assert (fields['learning_rate'].minimum, fields['learning_rate'].maximum) == (None, 1.0)
    assert fields['epochs'].minimum == 1


def test_no_label_appears_twice() -> None:
    labels = [field.label for field in ALL_FIELDS]
    assert len(labels) == len(set(labels))


def test_caption_names_unit_and_meaning_of_the_lowest_value() -> None:
    captions = {field.name: field.caption for field in iter_setting_fields('training')}
    assert captions['epochs'] == 'Epochs (training) [epochs]'
    assert captions['batch_size'] == 'Batch size (training) [groups, 0 = automatic]'
    assert captions['learning_rate'] == 'Learning rate'
    (smoothing,) = (field for field in iter_setting_fields('refinement') if field.name == 'smoothing')
    assert smoothing.caption == 'Smoothing [photons, -1 = automatic]'


def test_defaults_are_those_of_the_tree(settings: PtychoPINNSettings) -> None:
    assert settings.build_config('pinn') == Config()
    assert settings.build_config('supervised').model.model_type == 'supervised'


def test_every_value_survives_a_settings_file(
    registry: SettingsRegistry, settings: PtychoPINNSettings, tmp_path: Path
) -> None:
    for field in ALL_FIELDS:
        settings.get_parameter(field.section, field.name).set_value(other_value(field))

    expected = settings.build_config('pinn')
    assert expected != Config()
    registry.save_settings(tmp_path / 'settings.ini')

    reopened_registry = SettingsRegistry()
    reopened = PtychoPINNSettings(reopened_registry)
    reopened_registry.open_settings(tmp_path / 'settings.ini')
    assert reopened.build_config('pinn') == expected

    for field in ALL_FIELDS:
        assert reopened.get_parameter(field.section, field.name).get_value() == other_value(field)


@pytest.mark.parametrize(
    ('section', 'name', 'text'),
    [
        ('training', 'epochs', '0'),  # below ge: get_value() would say 1
        ('training', 'learning_rate', '0.0'),  # gt, for which the host has no bound
        ('training', 'learning_rate', 'nan'),
        ('training', 'accelerator', 'tpu'),
        ('training', 'likelihood', 'Poisson'),
        ('inference', 'threads', '5000'),  # above le
        ('data', 'validation_fraction', '0.75'),
    ],
)
def test_value_out_of_range_is_refused_by_name(
    registry: SettingsRegistry, settings: PtychoPINNSettings, tmp_path: Path, section: str, name: str, text: str
) -> None:
    file = tmp_path / 'settings.ini'
    file.write_text(f'[{group_name(section)}]\n{name} = {text}\n')
    registry.open_settings(file)

    with pytest.raises(ConfigurationError) as caught:
        settings.build_config('pinn')

    assert f'[{group_name(section)}] {name} = {text}' in str(caught.value)


def test_every_wrong_value_is_named_at_once(settings: PtychoPINNSettings) -> None:
    settings.get_parameter('training', 'epochs').set_value(-3)
    settings.get_parameter('inference', 'accelerator').set_value('abacus')

    with pytest.raises(ConfigurationError, match=r'\[PtychoPINNPyTorchTraining\] epochs = -3.*Inference\] accelerator'):
        settings.build_config('pinn')
