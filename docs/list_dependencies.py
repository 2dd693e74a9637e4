"""Print ``docs/dependencies.md``: what an installation of this package brings with it, and under which licences.

Versions and licences are those of the packages that are installed; ``make dependencies`` writes the page.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from email.message import Message
from importlib.metadata import PackageNotFoundError, distribution
from typing import cast

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PACKAGE = 'ptychopinn_torch_plugin'
MAX_LICENCE_CHARS = 60

HEAD = """# Dependencies and licences

Written by `make dependencies` from the metadata of the installed packages; do not edit. `make sbom` writes a software
bill of materials (CycloneDX) with all versions to `dist/sbom.json`.

`torch` must be 2.10 or newer: older versions can run code from a checkpoint that is loaded with `weights_only=True`
(CVE-2025-32434, CVE-2026-24747). This package loads no such checkpoints.
"""


def licence_of(metadata: Message) -> str:
    """Return the licence that a package states, in one line."""
    expression = metadata.get('License-Expression')
    classifiers = [
        one.rsplit(' :: ', 1)[-1] for one in metadata.get_all('Classifier', []) if one.startswith('License ::')
    ]
    text = ' '.join((metadata.get('License') or '').split())
    if expression:
        return str(expression)
    if 0 < len(text) <= MAX_LICENCE_CHARS:
        return text
    return ', '.join(classifiers) or 'see the files of the package'


def requirements_of(name: str) -> Iterator[Requirement]:
    """Yield what the installed package ``name`` requires here, without extras."""
    for line in distribution(name).requires or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({'extra': ''}):
            yield requirement


def metadata_of(name: str) -> Message:
    """Return the metadata of the installed package ``name``."""
    return cast(Message, distribution(name).metadata)


def main() -> None:
    """Print the page."""
    direct = {canonicalize_name(one.name): one for one in requirements_of(PACKAGE)}
    found = set(direct)
    pending = list(direct)
    while pending:
        for requirement in requirements_of(pending.pop()):
            name = canonicalize_name(requirement.name)
            if name not in found:
                try:
                    distribution(name)
                except PackageNotFoundError:
                    print(f'{name} is required and not installed.', file=sys.stderr)
                    continue
                found.add(name)
                pending.append(name)
    print(HEAD)
    print('## Required by this package\n\n| package | required | installed | licence |\n| --- | --- | --- | --- |')
    for name in sorted(direct):
        bounds = ','.join(sorted((str(one) for one in direct[name].specifier), reverse=True))
        metadata = metadata_of(name)
        version = re.sub(r'\+.*', '', metadata['Version'])  # without the build, for example +cpu
        print(f'| {name} | {bounds} | {version} | {licence_of(metadata)} |')
    licences: dict[str, list[str]] = {}
    for name in sorted(found - set(direct)):
        licences.setdefault(licence_of(metadata_of(name)), []).append(name)
    print('\n## Required by those\n\n| licence | packages |\n| --- | --- |')
    for licence, names in sorted(licences.items(), key=lambda item: item[0].casefold()):
        print(f'| {licence} | {", ".join(names)} |')


if __name__ == '__main__':
    main()
