"""Which settings a panel shows, where, and which of them have an effect at present. Without Qt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from ..settings import SECTIONS, SettingField, iter_setting_fields

Setting = tuple[str, str]
"""Section and name, for example ``('training', 'epochs')``."""
Values = Mapping[Setting, object]

MAIN_FIELDS: Final[Mapping[str, tuple[Setting, ...]]] = {
    'pinn': (
        ('training', 'epochs'),
        ('training', 'probe_trainable'),
        ('refinement', 'refine_epochs'),
        ('refinement', 'probe_modes'),
        ('refinement', 'refine_positions'),
    ),
    'supervised': (
        ('training', 'epochs'),
        ('training', 'probe_trainable'),
        ('training', 'learning_rate'),
        ('refinement', 'refine_epochs'),
        ('refinement', 'refine_positions'),
    ),
    'refine': (
        ('refinement', 'refine_epochs'),
        ('refinement', 'probe_modes'),
        ('refinement', 'refine_probe'),
        ('refinement', 'refine_positions'),
        ('refinement', 'smoothing'),
    ),
}
"""The settings that matter most, by the name of the reconstructor in lower case; shown above the folded ones."""

FOLDS: Final = ('Data', 'Probe', 'Model', 'Training', 'Refinement', 'Hardware')
"""Titles of the folded parts in their order."""

_FOLD_OF_SECTION: Final = {
    'data': 'Data',
    'probe': 'Probe',
    'model': 'Model',
    'training': 'Training',
    'refinement': 'Refinement',
    'inference': 'Refinement',
}
_FOLD_OF_SETTING: Final[Mapping[Setting, str]] = {
    ('inference', 'use_model_probe'): 'Probe',
    ('inference', 'steps'): 'Model',
    ('inference', 'window_size'): 'Model',
    ('training', 'accelerator'): 'Hardware',
    ('training', 'threads'): 'Hardware',
    ('training', 'devices'): 'Hardware',
    ('training', 'precision'): 'Hardware',
    ('training', 'batch_size'): 'Hardware',
    ('training', 'accumulate'): 'Hardware',
    ('inference', 'accelerator'): 'Hardware',
    ('inference', 'threads'): 'Hardware',
    ('inference', 'batch_size'): 'Hardware',
    ('inference', 'devices'): 'Hardware',
}

_WITHOUT_NETWORK: Final = frozenset(
    {'batch_size', 'preview_interval', 'half_scans', 'accelerator', 'threads', 'devices', 'verify', 'calibrate'}
)
"""Inference settings that have an effect without a network."""

_HIDDEN: Final[frozenset[Setting]] = frozenset({('inference', 'batch_interval'), ('refinement', 'inspect_apply')})
"""Settings without an effect in the window, which writes no files."""


def is_shown(reconstructor_name: str, field: SettingField) -> bool:
    """Return whether the panel of a reconstructor (by its name, any case) shows a setting.

    "Refine" has no network, "Supervised" does not compare patterns in training, and the section ``execution`` is for
    settings files and scripts only.
    """
    setting = field.section, field.name
    if field.section == 'execution' or setting in _HIDDEN:
        return False
    name = reconstructor_name.casefold()
    if name == 'supervised' and setting == ('training', 'likelihood'):
        return False
    if name != 'refine':
        return setting != ('refinement', 'inspect_first')
    return field.section in ('probe', 'refinement') or (field.section == 'inference' and field.name in _WITHOUT_NETWORK)


def shown_fields(reconstructor_name: str) -> list[SettingField]:
    """Return the settings of a panel in the order of the configuration tree."""
    fields = (field for section in SECTIONS for field in iter_setting_fields(section))
    return [field for field in fields if is_shown(reconstructor_name, field)]


def main_fields(reconstructor_name: str) -> list[SettingField]:
    """Return the settings above the folded ones."""
    fields = {(field.section, field.name): field for field in shown_fields(reconstructor_name)}
    return [fields[setting] for setting in MAIN_FIELDS[reconstructor_name.casefold()]]


def folded_fields(reconstructor_name: str) -> dict[str, list[SettingField]]:
    """Return the other settings by the title of their part; parts without settings are left out."""
    main = MAIN_FIELDS[reconstructor_name.casefold()]
    found: dict[str, list[SettingField]] = {title: [] for title in FOLDS}
    for field in shown_fields(reconstructor_name):
        setting = field.section, field.name
        if setting not in main:
            found[_FOLD_OF_SETTING.get(setting, _FOLD_OF_SECTION[field.section])].append(field)
    return {title: fields for title, fields in found.items() if fields}


def _is(setting: Setting, *values: object) -> Callable[[Values], bool]:
    return lambda found: found[setting] in values


def _is_positive(setting: Setting) -> Callable[[Values], bool]:
    return lambda found: float(str(found[setting])) > 0


_HAS_EPOCHS: Final = _is_positive(('refinement', 'refine_epochs'))

_CONDITIONS: Final[Mapping[Setting, tuple[Callable[[Values], bool], str]]] = {
    ('model', 'memory_channels'): (_is(('model', 'generator'), 'unrolled'), 'the generator "unrolled"'),
    ('model', 'amplitude_activation'): (_is(('model', 'generator'), 'patch'), 'the generator "patch"'),
    ('model', 'probe_big'): (_is(('model', 'generator'), 'patch'), 'the generator "patch"'),
    ('data', 'neighbor_count'): (lambda found: found['data', 'group_size'] != 1, 'groups of several positions'),
    ('data', 'subsample_seed'): (_is_positive(('data', 'subsample')), 'a subsample'),
    ('training', 'threads'): (_is(('training', 'accelerator'), 'auto', 'cpu'), 'a CPU'),
    ('inference', 'threads'): (_is(('inference', 'accelerator'), 'auto', 'cpu'), 'a CPU'),
    ('refinement', 'probe_start'): (_is(('refinement', 'refine_probe'), True), '"Refine the probe"'),
    ('refinement', 'positions_start'): (_is(('refinement', 'refine_positions'), True), '"Refine the positions"'),
    ('refinement', 'intensity_start'): (_is(('refinement', 'refine_intensity'), True), '"Refine the intensities"'),
    ('refinement', 'inspect_first'): (_HAS_EPOCHS, 'refinement epochs'),
}
_OF_EPOCHS: Final = frozenset(
    {
        'likelihood',
        'smoothing',
        'refine_probe',
        'probe_start',
        'probe_modes',
        'refine_positions',
        'positions_start',
        'refine_intensity',
        'intensity_start',
        'stop_when_done',
    }
)
"""Refinement settings that have an effect in its epochs only."""


def unused_because(setting: Setting, values: Values) -> str:
    """Return what is missing for a setting to have an effect, as words after "needs"; empty where it has one.

    Args:
        setting: the setting.
        values: present values of all settings.
    """
    section, name = setting
    if section == 'refinement' and name in _OF_EPOCHS and not _HAS_EPOCHS(values):
        return 'refinement epochs'
    condition, need = _CONDITIONS.get(setting, (None, ''))
    return '' if condition is None or condition(values) else need
