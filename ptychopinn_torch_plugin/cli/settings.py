"""The configuration of a run, from a settings file of Ptychodus and from the command line."""

from __future__ import annotations

import argparse
import configparser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..config import Config, parse_config
from ..errors import ConfigurationError
from ..presets import PRESETS, preset_tree
from ..storage.checked_files import read_text


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add ``--preset``, ``-s`` and ``--set`` to the parser of a command."""
    purposes = ' '.join(f'{name}: {preset.purpose}' for name, preset in PRESETS.items())
    parser.add_argument(
        '--preset', choices=tuple(PRESETS), default='balanced', help=f'settings for a purpose. {purposes}'
    )
    parser.add_argument(
        '-s',
        '--settings',
        type=Path,
        help='a Ptychodus settings file to read the PtychoPINNPyTorch groups of; overrides the preset',
    )
    action = parser.add_argument(
        '--set',
        action='append',
        default=[],
        metavar='SECTION.NAME=VALUE',
        help='one setting, for example training.epochs=5; may be repeated, and overrides the settings file '
        '("ptychopinn-torch settings" lists them all)',
    )
    action.completer = _complete_setting  # type: ignore[attr-defined] # read by argcomplete


def _complete_setting(prefix: str, **_: object) -> list[str]:
    from ..config import Config

    names = [
        f'{section}.{name}='
        for section, field in Config.model_fields.items()
        for name in type(field.default).model_fields
    ]
    return [name for name in names if name.startswith(prefix)]


def read_config(
    settings: Path | None, changes: Sequence[str], model_type: str = 'pinn', preset: str = 'balanced'
) -> Config:
    """Build the configuration of a run.

    Args:
        settings: a settings file (INI) whose groups ``PtychoPINNPyTorch...`` are read; None means the defaults.
        changes: the values of ``--set``, ``section.name=value``; the last one of a name counts.
        model_type: ``'pinn'`` or ``'supervised'``.
        preset: name in ``PRESETS``; the settings file and ``--set`` override its values.

    Raises:
        ConfigurationError: the file does not exist or is not a settings file, a change is not of that form, a name
            is unknown, a value is out of range, or an inspection is requested, which is a command of its own.
    """
    from ..host.settings import SECTIONS

    chosen = preset_tree(preset)
    tree: dict[str, dict[str, Any]] = {section: dict(chosen.get(section, {})) for section in SECTIONS}
    if settings is not None:
        for section, values in _read_groups(settings).items():
            tree[section].update(values)
    for change in changes:
        path, equals, value = change.partition('=')
        section, dot, name = path.partition('.')
        if not (equals and dot and section in SECTIONS):
            raise ConfigurationError(
                f'--set {change}: write SECTION.NAME=VALUE with SECTION one of {", ".join(SECTIONS)}.'
            )
        if path == 'model.model_type':
            raise ConfigurationError(f'--set {change}: choose the kind of model with train --supervised.')
        tree[section][name] = value
    tree['model']['model_type'] = model_type
    config = parse_config(tree)
    if config.refinement.inspect_first or config.refinement.inspect_apply:
        raise ConfigurationError(
            'refinement.inspect_first and refinement.inspect_apply are settings of Ptychodus: here, run '
            '"ptychopinn-torch inspect SCAN" first, with --apply -o FOLDER to apply what it proposes.'
        )
    return config


def _read_groups(settings: Path) -> dict[str, dict[str, str]]:
    """Return this package's groups in a settings file, by section of the configuration tree."""
    from ..host.settings import SECTIONS, group_name

    if not settings.is_file():
        raise ConfigurationError(f'There is no settings file {settings}.')
    parser = configparser.ConfigParser(interpolation=None)
    text = read_text(settings)
    try:
        parser.read_string(text)
    except configparser.Error as error:
        raise ConfigurationError(f'{settings} is not a settings file of Ptychodus ({error}).') from error
    groups = {section: group_name(section) for section in SECTIONS}
    return {section: dict(parser[group]) for section, group in groups.items() if parser.has_section(group)}
