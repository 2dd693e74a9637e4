"""PtychoPINN's configuration names and what becomes of each: honoured, or refused with a reason.

A name is one row of :data:`NAMES`; ``docs/configuration-names.md`` is written from it. Most names are a field of the
tree under another name; those with a rule of their own have it in :mod:`.rules`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from ..config import Config, reason
from ..errors import ConfigurationError
from ..storage.checked_files import parse_json, parse_yaml, printable, read_text
from .legacy_options import Draft, Name
from .options import NAMES

__all__ = ['NAMES', 'WorkflowConfig', 'configuration_from']

SECTIONS = ('model', 'training', 'inference', 'execution')
"""Nested mappings or dataclass instances of these names are opened; their names are all different things."""

_MAX_LISTED = 20
"""Unknown names that a message lists."""

_BY_NAME: dict[str, Name] = {name.name: name for name in NAMES}


@dataclass(frozen=True)
class WorkflowConfig:
    """What the workflow functions work with: the tree, and what concerns the data rather than the engine."""

    config: Config = field(default_factory=Config)
    """The frozen tree of this package."""

    pattern_size: int | None = None
    """``N``: side of the patterns in pixels, which data are checked against; None takes them as they are."""

    train_data_file: Path | None = None
    """Data to train on where a function is given None."""

    test_data_file: Path | None = None
    """Data to stitch, and to judge the model by, where a function is given None."""

    model_path: Path | None = None
    """Model file or folder to stitch with where a function is given no models."""

    output_dir: Path | None = None
    """Folder for the model, its log and the stitched object; None keeps them in memory."""

    n_groups: int | None = None
    """Groups that raw data are cut into; None takes compact groups that hold every position."""

    n_subsample: int | None = None
    """Positions of raw data to use, drawn at random; None takes all."""

    nphotons: float | None = None
    """Mean photons per pattern of amplitudes that are normalised."""

    test_data_judge: bool = False
    """Whether test data judge the model after every epoch, as in PtychoPINN; a plain tree says it itself, by
    ``data.hold_out_scan``."""

    dialect: str = 'auto'
    """What patterns of files and arrays hold: 'counts', 'amplitude', or 'auto' (a rule decides)."""


def configuration_from(names: object, *more: object, base: Config | None = None) -> WorkflowConfig:
    """Map a configuration in PtychoPINN's names to the tree of this package.

    Args:
        names: a mapping, a dataclass instance, a YAML or JSON file, or any object with these names as attributes. The
            sections ``model``, ``training``, ``inference`` and ``execution`` may be nested. A :class:`Config` becomes a
            :class:`WorkflowConfig` as it is; a :class:`WorkflowConfig` passes through. None as a value means that the
            name is not given.
        *more: further parts, for example the execution settings. The same name twice must have the same value.
        base: values of all fields that no name speaks of; the defaults of the tree if None.

    Returns:
        The configuration.

    Raises:
        ConfigurationError: a name is unknown, has a value that this package cannot honour, or contradicts another one;
            the message lists every such name with the reason.
        MissingDependencyError: a YAML file is given, and pyyaml is not installed.

    Warns:
        DeprecationWarning: ``n_images``, the old name of ``n_groups``.
    """
    if isinstance(names, WorkflowConfig | Config) and (more or base is not None):
        raise ConfigurationError('A finished configuration takes no further names: change it with model_copy.')
    if isinstance(names, WorkflowConfig):
        return names
    if isinstance(names, Config):
        return WorkflowConfig(names)
    draft = Draft(base or Config(), _collected([names, *more]))
    _refuse_unknown(draft.given)
    for row in NAMES:
        if row.name in draft.given:
            draft.run(row)
    return _finished(draft)


def _collected(parts: list[object]) -> dict[str, Any]:
    """All names of all parts and their sections on one level."""
    given: dict[str, Any] = {}
    for part in parts:
        for name, value in _flattened(_as_mapping(part)):
            if name in given and given[name] != value:
                raise ConfigurationError(
                    f'{name} is given twice, as {printable(repr(given[name]))} and as {printable(repr(value))}: map '
                    'the two configurations apart.'
                )
            given[name] = value
    return given


def _flattened(part: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in part.items():
        if name in SECTIONS:
            if isinstance(value, str | Path):  # a file does not name other files
                raise ConfigurationError(f'{name} is {printable(str(value))}: give names with values.')
            if value is not None:
                yield from _flattened(_as_mapping(value))
        elif value is not None:
            yield name, value


def _as_mapping(part: object) -> Mapping[str, Any]:
    if isinstance(part, Mapping):
        return part
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        return {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
    if isinstance(part, str | Path):
        return _read(Path(part))
    if hasattr(part, '__dict__') and not isinstance(part, type):
        return vars(part)
    raise ConfigurationError(
        f'A configuration is a mapping, a dataclass instance, or a YAML or JSON file, not {type(part).__name__}.'
    )


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise ConfigurationError(f'There is no configuration file {path}.')
    text = read_text(path)
    content = parse_json(text, path) if path.suffix == '.json' else parse_yaml(text, path)
    if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
        raise ConfigurationError(f'{path} holds no names with values: write "nepochs: 50", one a line.')
    return cast(Mapping[str, Any], content)


def _refuse_unknown(given: Mapping[str, Any]) -> None:
    unknown = sorted(set(given) - set(_BY_NAME))
    if unknown:
        names = ', '.join(printable(name) for name in unknown[:_MAX_LISTED])
        raise ConfigurationError(
            f'{names}{"..." if len(unknown) > _MAX_LISTED else ""}: no such name is known; docs/configuration-names.md '
            'lists all that are.'
        )


def _finished(draft: Draft) -> WorkflowConfig:
    config = draft.base
    try:
        config = Config.model_validate(draft.tree())
    except ValidationError as error:
        for item in error.errors():
            draft.refuse(draft.source_of(item['loc']), reason(item))
    if draft.refusals:
        lines = [
            f'{name} = {printable(repr(draft.given[name]))}: {why}' if name in draft.given else f'{name}: {why}'
            for name, why in draft.refusals
        ]
        raise ConfigurationError('This configuration cannot be honoured: ' + '; '.join(lines) + '.')
    return WorkflowConfig(config, test_data_judge=True, **draft.data)
