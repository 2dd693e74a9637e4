"""Presets: named sets of settings for the usual purposes, the same in the panel and on the command line.

A preset is a small table of ordinary settings. Applying it also puts the settings that other presets change back to
their defaults, so that the order in which presets are tried does not matter. Nothing else is changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from .config import Config

Setting = tuple[str, str]
"""Section and name, for example ``('training', 'epochs')``."""
Value = bool | int | float | str


@dataclass(frozen=True)
class Preset:
    """One preset."""

    label: str
    """Name in the panel."""
    purpose: str
    """What it is for, as a sentence."""
    changes: Mapping[Setting, Value]
    """The settings that differ from the defaults."""


PRESETS: Final[Mapping[str, Preset]] = {
    'quick': Preset(
        'Quick look',
        'A first picture to see whether the data are good; details are missing.',
        {('training', 'epochs'): 6, ('refinement', 'refine_epochs'): 20},
    ),
    'balanced': Preset('Balanced', 'The defaults: near the quality of "Best" in a fraction of the time.', {}),
    'best': Preset(
        'Best',
        'For the result to be published: more epochs, and the resolution from half scans.',
        {
            ('training', 'epochs'): 60,
            ('refinement', 'refine_epochs'): 200,
            ('inference', 'half_scans'): True,
        },
    ),
    'faint': Preset(
        'Faint',
        'For fewer than about 10,000 photons per pattern: Poisson statistics, positions as given.',
        {
            ('training', 'likelihood'): 'poisson',
            ('refinement', 'likelihood'): 'poisson',
            ('refinement', 'refine_positions'): False,
        },
    ),
}
"""The presets by their names on the command line."""


def preset_settings(name: str) -> dict[Setting, Value]:
    """Return every setting that any preset changes, with its value under the preset ``name``."""
    touched = sorted({setting for preset in PRESETS.values() for setting in preset.changes})
    return {setting: PRESETS[name].changes.get(setting, _default(setting)) for setting in touched}


def preset_tree(name: str) -> dict[str, dict[str, Value]]:
    """Return the changes of a preset as nested mappings for :func:`~ptychopinn_torch_plugin.config.parse_config`."""
    tree: dict[str, dict[str, Value]] = {}
    for (section, field), value in PRESETS[name].changes.items():
        tree.setdefault(section, {})[field] = value
    return tree


def matching_preset(values: Mapping[Setting, Value]) -> str | None:
    """Return the name of the preset whose settings ``values`` has; None if there is none ("Custom").

    Args:
        values: at least the settings of :func:`preset_settings`.
    """
    for name in PRESETS:
        if all(values[setting] == value for setting, value in preset_settings(name).items()):
            return name
    return None


def _default(setting: Setting) -> Value:
    section, name = setting
    default: Value = getattr(getattr(Config(), section), name)
    return default
