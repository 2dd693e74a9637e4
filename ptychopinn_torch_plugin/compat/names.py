"""Map PtychoPINN's configuration names to the settings of this package: each is used, or refused with a reason."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from ..config import Config, reason
from ..data.diffraction_quantity import DiffractionQuantity
from ..errors import ConfigurationError
from ..storage.checked_files import parse_json, parse_yaml, printable, read_text
from .legacy_options import LegacyOptions
from .options import OPTIONS

logger = logging.getLogger(__name__)

SECTIONS = ('model', 'training', 'inference', 'execution')
"""Nested mappings or dataclass instances of these names are opened; their names are all different things."""

MAX_LISTED = 20
"""Unknown names that a message lists."""

NONE_IS_A_VALUE = ('logger_backend',)
"""Names for which None says something; for all others it means that the name is not given."""


@dataclass(frozen=True)
class WorkflowConfig:
    """What the workflow functions work with: the settings, and what concerns the data rather than the engine."""

    config: Config = field(default_factory=Config)
    """The settings of this package."""

    pattern_size: int | None = None
    """``N``: side of the patterns in pixels, which data are compared with; None takes them as they are."""

    train_data_file: Path | None = None
    """Data to train on where a function is given None."""

    test_data_file: Path | None = None
    """Data to stitch, and to validate the model on, where a function is given None."""

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

    validate_on_test_data: bool = False
    """Whether the model is validated on the test data after every epoch, as in PtychoPINN; plain settings say it
    themselves, by ``data.hold_out_scan``."""

    diffraction_quantity: DiffractionQuantity = 'auto'
    """What patterns of files and arrays hold: 'counts', 'amplitude', or 'auto' (a rule decides)."""

    notes: tuple[str, ...] = ()
    """Names that make no difference to this engine, each with the reason."""


def configuration_from(names: object, *more: object, base: Config | None = None) -> WorkflowConfig:
    """Map a configuration in PtychoPINN's names to the settings of this package.

    Names that make no difference here are listed in one line of the log.

    Args:
        names: a mapping, a dataclass instance, a YAML or JSON file, or any object with these names as attributes. The
            sections ``model``, ``training``, ``inference`` and ``execution`` may be nested. A :class:`Config` or a
            :class:`WorkflowConfig` is taken as it is. None as a value means that the name is not given, except for
            ``logger_backend``, where it means no log.
        *more: further parts, for example the execution settings. The same name twice must have the same value.
        base: values of all settings that no name sets; the defaults if None. Not together with a :class:`Config`.

    Returns:
        The configuration.

    Raises:
        ConfigurationError: a name is unknown, has a value that this package cannot use, or contradicts another one;
            the message lists every such name with the reason.
        MissingDependencyError: a YAML file is given, and pyyaml is not installed.

    Warns:
        DeprecationWarning: ``n_images``, the old name of ``n_groups``.
    """
    if any(
        'n_images' in _collected([part]) for part in (names, *more) if not isinstance(part, WorkflowConfig | Config)
    ):
        warnings.warn('n_images is the old name of n_groups: write n_groups.', DeprecationWarning, stacklevel=2)
    settings = map_names(names, *more, base=base)
    if settings is not names and settings.notes:
        logger.info('These names make no difference here: %s.', '; '.join(settings.notes))
    return settings


def map_names(names: object, *more: object, base: Config | None = None) -> WorkflowConfig:
    """Do what :func:`configuration_from` does, without a line in the log and without a warning."""
    start = WorkflowConfig(base or Config(), validate_on_test_data=True)
    if isinstance(names, WorkflowConfig | Config):
        if base is not None:
            raise ConfigurationError('A finished configuration has its own settings: give no base with it.')
        start = WorkflowConfig(names) if isinstance(names, Config) else names
        if not more:
            return start
    else:
        more = (names, *more)
    options = LegacyOptions(start.config, _collected(more))
    unknown = sorted(set(options.given) - set(OPTIONS))
    if unknown:
        listed = ', '.join(printable(name) for name in unknown[:MAX_LISTED])
        raise ConfigurationError(
            f'{listed}{"..." if len(unknown) > MAX_LISTED else ""}: no such name is known; docs/configuration-names.md '
            'lists all that are.'
        )
    for name, rule in OPTIONS.items():
        if name in options.given:
            options.apply(name, rule)
    return _finished(options, start)


def _collected(parts: Sequence[object]) -> dict[str, Any]:
    """Return all names of all parts and their sections on one level."""
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
        elif value is not None or name in NONE_IS_A_VALUE:
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


def _finished(options: LegacyOptions, start: WorkflowConfig) -> WorkflowConfig:
    config = options.base
    try:
        config = Config.model_validate(options.tree())
    except ValidationError as error:
        for item in error.errors():
            options.refusals[options.source_of(item['loc'])] = reason(item)
    given = options.given
    if options.refusals:
        lines = [
            f'{name} = {printable(repr(given[name]))}: {why}' if name in given else f'{name}: {why}'
            for name, why in options.refusals.items()
        ]
        raise ConfigurationError('This configuration cannot be used: ' + '; '.join(lines) + '.')
    notes = tuple(f'{name} = {given[name]!r} ({why})' for name, why in options.notes.items())
    return dataclasses.replace(start, config=config, notes=start.notes + notes, **options.data)
