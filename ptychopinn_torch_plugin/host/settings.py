"""Settings groups of Ptychodus made from the configuration tree, and a configuration made from their values.

Every labelled field of :mod:`ptychopinn_torch_plugin.config` becomes one parameter; names and defaults are written
there only. The host's parameters clamp silently: ``get_value`` moves an integer or a real number into its inclusive
bounds, and exclusive bounds (``gt``, ``lt``) cannot be given to them at all. Values are therefore read as a settings
file would hold them (``get_value_as_string`` does not clamp) and validated by the tree, so that a value out of range is
refused by name instead of being replaced by another one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, cast, get_args, get_origin

import annotated_types
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from ..config import (
    Config,
    DataConfig,
    ExecutionConfig,
    InferenceConfig,
    ModelConfig,
    ProbeConfig,
    RefinementConfig,
    TrainingConfig,
    parse_config,
    reason,
)
from ..errors import ConfigurationError

if TYPE_CHECKING:
    from ptychodus.api.parameters import Parameter, ParameterGroup
    from ptychodus.api.settings import SettingsRegistry

logger = logging.getLogger(__name__)

Kind = type[int] | type[float] | type[bool] | type[str]
ModelType = Literal['pinn', 'supervised']

GROUP_PREFIX: Final = 'PtychoPINNPyTorch'

SECTIONS: Final[dict[str, type[BaseModel]]] = {
    'data': DataConfig,
    'probe': ProbeConfig,
    'model': ModelConfig,
    'training': TrainingConfig,
    'execution': ExecutionConfig,
    'refinement': RefinementConfig,
    'inference': InferenceConfig,
}
"""Sections of the tree in the order in which users see them."""


_KINDS: Final[dict[object, Kind]] = {int: int, float: float, bool: bool, str: str}


@dataclass(frozen=True)
class SettingField:
    """One field of the configuration tree that users see."""

    section: str
    name: str
    kind: Kind
    default: int | float | bool | str
    label: str
    unit: str
    lowest: str
    """Word that is shown in place of the lowest value; empty where that is a number like any other."""
    tip: str
    minimum: float | None
    """Inclusive lower bound; None where there is none or it is exclusive."""
    maximum: float | None
    """Inclusive upper bound; None where there is none or it is exclusive."""
    choices: tuple[str, ...]
    """Values a string may take."""

    @property
    def caption(self) -> str:
        """Label with unit and meaning of the lowest value: ``Batch size (training) [groups, 0 = automatic]``."""
        return f'{self.label} [{self.unit_text}]' if self.unit_text else self.label

    @property
    def unit_text(self) -> str:
        """Unit and meaning of the lowest value: ``groups, 0 = automatic``; empty where there is neither."""
        return ', '.join(part for part in (self.unit, self.lowest and f'{self.minimum:g} = {self.lowest}') if part)


def group_name(section: str) -> str:
    """Return the name of the settings group of a section: ``training`` is ``PtychoPINNPyTorchTraining``."""
    return GROUP_PREFIX + section.capitalize()


def iter_setting_fields(section: str) -> Iterator[SettingField]:
    """Yield the labelled fields of a section of the tree in their order.

    Raises:
        TypeError: the host has no parameter for the type of a labelled field.
    """
    for name, field in SECTIONS[section].model_fields.items():
        if field.title is not None:
            yield _describe(section, name, field, field.title)


def _describe(section: str, name: str, field: FieldInfo, title: str) -> SettingField:
    is_literal = get_origin(field.annotation) is Literal
    kind = _KINDS.get(str if is_literal else field.annotation)

    if kind is None:
        raise TypeError(f'{section}.{name} has the type {field.annotation}, for which Ptychodus has no parameter.')

    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    lower = [cast(float, item.ge) for item in field.metadata if isinstance(item, annotated_types.Ge)]
    upper = [cast(float, item.le) for item in field.metadata if isinstance(item, annotated_types.Le)]
    return SettingField(
        section=section,
        name=name,
        kind=kind,
        default=field.default,
        label=title,
        unit=str(extra.get('unit', '')),
        lowest=str(extra.get('lowest', '')),
        tip=field.description or '',
        minimum=max(lower) if lower else None,
        maximum=min(upper) if upper else None,
        choices=get_args(field.annotation) if is_literal else (),
    )


def _create_parameter(group: ParameterGroup, field: SettingField) -> Parameter[Any]:
    if field.kind is bool:
        return group.create_boolean_parameter(field.name, bool(field.default))

    if field.kind is str:
        return group.create_string_parameter(field.name, str(field.default))

    if field.kind is int:
        return group.create_integer_parameter(
            field.name,
            int(field.default),
            minimum=None if field.minimum is None else int(field.minimum),
            maximum=None if field.maximum is None else int(field.maximum),
        )

    return group.create_real_parameter(field.name, float(field.default), minimum=field.minimum, maximum=field.maximum)


class PtychoPINNSettings:
    """The plug-in's parameters in the host's registry, one group per section of the tree."""

    def __init__(self, settings_registry: SettingsRegistry) -> None:
        self._groups: dict[str, ParameterGroup] = {}
        self._parameters: dict[str, dict[str, Parameter[Any]]] = {}
        self._unreadable: dict[tuple[str, str], tuple[str, str]] = {}

        for section in SECTIONS:
            group = self._groups[section] = settings_registry.create_group(group_name(section))
            self._parameters[section] = {
                field.name: _create_parameter(group, field) for field in iter_setting_fields(section)
            }
            for name, parameter in self._parameters[section].items():
                self._accept_unreadable(section, name, parameter)

    def _accept_unreadable(self, section: str, name: str, parameter: Parameter[Any]) -> None:
        """Let the host start with a settings file whose text for this parameter is no value of its kind.

        The host's parameters raise an error, which would end the application. Here the text is kept and refused by
        name when a run begins, unless the parameter has another value by then.
        """
        read = parameter.set_value_from_string

        def read_or_keep(value: str) -> None:
            self._unreadable.pop((section, name), None)
            try:
                read(value)
            except ValueError:
                self._unreadable[section, name] = value, parameter.get_value_as_string()
                logger.warning('[%s] %s = %s cannot be read: change it.', group_name(section), name, value)

        parameter.set_value_from_string = read_or_keep  # type: ignore[method-assign] # of this parameter alone

    def get_group(self, section: str) -> ParameterGroup:
        """Return the host's group of one section; it notifies its observers of every change of a parameter in it."""
        return self._groups[section]

    def get_parameter(self, section: str, name: str) -> Parameter[Any]:
        """Return the host's parameter of one field, for example ``('training', 'epochs')``."""
        return self._parameters[section][name]

    def build_config(self, model_type: ModelType) -> Config:
        """Return the present values as a configuration for one kind of model.

        Raises:
            ConfigurationError: a value is out of its range or choices; the message names ``[Group] name``.
        """
        tree: dict[str, dict[str, str]] = {
            section: {name: parameter.get_value_as_string() for name, parameter in parameters.items()}
            for section, parameters in self._parameters.items()
        }
        tree['model']['model_type'] = model_type

        for (section, name), (text, value) in self._unreadable.items():
            if tree[section][name] == value:
                tree[section][name] = text

        try:
            return parse_config(tree)
        except ConfigurationError as error:
            if isinstance(error.__cause__, ValidationError):
                raise _name_settings(error.__cause__) from error

            raise


def _name_settings(error: ValidationError) -> ConfigurationError:
    lines = []

    for item in error.errors():
        section, *names = (str(part) for part in item['loc'])
        value = f' = {item["input"]}' if names else ''
        field = SECTIONS[section].model_fields.get(' '.join(names))
        label = '' if field is None or field.title is None else f' ("{field.title}" in the panel)'
        lines.append(f'[{group_name(section)}] {" ".join(names)}{value}{label}: {reason(item)}')

    return ConfigurationError(f'Change these settings of PtychoPINN (PyTorch): {"; ".join(lines)}.')
