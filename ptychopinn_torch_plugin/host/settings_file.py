"""Find misspelt names in a settings file of Ptychodus, which ignores an unknown algorithm without a word.

Only names that belong to this package, or begin like one that does, are reported; the host's own are left to it.
"""

from __future__ import annotations

import configparser
import difflib
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ..config import suggestion
from .settings import GROUP_PREFIX

if TYPE_CHECKING:
    from ptychodus.api.settings import SettingsRegistry

ALIKE: Final = 0.87
"""Share of equal characters from which on the name of a library counts as a misspelling of another."""


def misspelt_names(
    file: Path, registry: SettingsRegistry, algorithms: Iterable[str], own: Collection[str]
) -> list[str]:
    """Return a sentence for every misspelt name of this package in a settings file.

    Args:
        file: the settings file; one that cannot be read has no misspelt names (the host reports it).
        registry: the host's settings groups.
        algorithms: keys of all algorithms of the host, case-folded.
        own: names of the libraries whose algorithms are ours, any case.
    """
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read(file)
    except (configparser.Error, OSError, UnicodeDecodeError):
        return []
    found = []
    algorithm = parser.get('Processing', 'Algorithm', fallback=None)
    if algorithm is not None:
        found += _misspelt_algorithm(algorithm, list(algorithms), own)
    for section in parser.sections():
        if not section.casefold().startswith(GROUP_PREFIX.casefold()):
            continue
        groups = [name for name in registry if name.startswith(GROUP_PREFIX)]
        if section not in groups:
            found.append(f'There is no settings group [{section}]: {suggestion(section, groups)}')
            continue
        known = registry[section].parameters()
        lower = {name.lower() for name in known}
        found += [
            f'There is no setting "{key}" in [{section}]: {suggestion(key, known)}'
            for key in parser[section]
            if key not in lower and key not in parser.defaults()
        ]
    return found


def _misspelt_algorithm(algorithm: str, algorithms: list[str], own: Collection[str]) -> list[str]:
    key = algorithm.strip().casefold()
    library = key.partition('_')[0]
    names = [name.casefold() for name in own]
    is_ours = any(key.startswith(name) for name in names) or difflib.get_close_matches(library, names, cutoff=ALIKE)
    if key in algorithms or not is_ours:
        return []
    valid = [known for known in algorithms if known.partition('_')[0] in names]
    return [f'There is no algorithm "{algorithm}": choose one of {", ".join(valid)} (upper or lower case)']
