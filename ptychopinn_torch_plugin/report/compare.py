"""One page that compares the reports of several runs."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Final

from ..errors import InputError
from ..storage.atomic import write_atomically
from ..storage.checked_files import parse_json, read_text
from .facts import FORMAT_VERSION, Facts
from .page import DATA_ID, environment

_MAX_BYTES: Final = 2**27
_URL: Final = 'data:image/png;base64,'
_SHOWN: Final = ('amplitude', 'phase', 'probe-found-1', 'object-residual')
"""Maps that the comparison shows side by side."""
_REQUIRED: Final = (
    'scan', 'started', 'seconds', 'patterns', 'photons_per_pattern', 'probe_modes', 'positions', 'metrics',
    'changed_settings', 'advice', 'credibility', 'kind', 'object_pixel_m', 'losses',
)  # fmt: skip


@dataclass(frozen=True)
class ReadReport:
    """The report of a run, read from its file."""

    path: Path
    facts: Facts
    images: dict[str, str]
    """``data:`` URLs of its maps by their names."""


def read_report(path: Path) -> ReadReport:
    """Read the report ``path``, or that in the folder ``path``.

    Raises:
        InputError: there is none, or it cannot be used.
    """
    from .output import REPORT_FILE

    file = path / REPORT_FILE if path.is_dir() else path
    if not file.is_file():
        raise InputError(
            f'{path} holds no {REPORT_FILE}: give reports, or folders of results that this version has written.'
        )
    reader = _Reader()
    reader.feed(read_text(file, InputError, _MAX_BYTES))
    if not reader.data:
        raise InputError(f'{file} is not a report of this package: its data are missing.')
    facts = parse_json(reader.data, file, InputError, max_values=None)
    if not isinstance(facts, dict) or facts.get('format_version') != FORMAT_VERSION:
        raise InputError(f'{file} is a report of another version of this package: reconstruct the scan again.')
    if facts.get('kind') == 'train':
        raise InputError(
            f'{file} is the report of a training: compare takes reports of reconstructions; "info FOLDER" compares '
            'models.'
        )
    lacking = [name for name in _REQUIRED if name not in facts]
    if lacking:
        raise InputError(f'{file} is not a complete report: {lacking[0]} is missing.')
    return ReadReport(file, facts, {name: url for name, url in reader.images.items() if _is_png(url)})


def write_comparison(path: Path, reports: Sequence[ReadReport]) -> None:
    """Write one HTML page that compares ``reports``.

    Raises:
        OutputError: the file cannot be written.
    """
    settings = sorted({item['name'] for report in reports for item in report.facts['changed_settings']})
    changed = [
        {item['name']: item['value'] for item in report.facts['changed_settings']} for report in reports
    ]  # fmt: skip
    from jinja2 import UndefinedError

    values = {'reports': reports, 'maps': _SHOWN, 'settings': settings, 'changed': changed}
    try:
        page = environment().get_template('compare.html.jinja').render(**values, names=distinct_names(reports))
    except (UndefinedError, TypeError, ValueError) as error:
        raise InputError(f'The data of a report are damaged ({error}): reconstruct the scan again.') from error
    write_atomically(path, page.encode())


def distinct_names(reports: Sequence[ReadReport]) -> list[str]:
    """Return a name for each report: the folder it is in, or as much of its path as makes the names differ."""
    parts = [report.path.absolute().parts for report in reports]
    for length in range(2, max(map(len, parts)) + 1):
        names = ['/'.join(part[-length:-1]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(report.path) for report in reports]


class _Reader(HTMLParser):
    """Finds the data and the maps of a report."""

    def __init__(self) -> None:
        super().__init__()
        self.data = ''
        self.images: dict[str, str] = {}
        self._is_in_data = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values: dict[str, Any] = dict(attrs)
        if tag == 'script':
            self._is_in_data = values.get('id') == DATA_ID
        elif tag == 'img' and values.get('id') and values.get('src'):
            self.images[values['id']] = values['src']

    def handle_endtag(self, tag: str) -> None:
        self._is_in_data = self._is_in_data and tag != 'script'

    def handle_data(self, data: str) -> None:
        if self._is_in_data:
            self.data += data


def _is_png(url: str) -> bool:
    """Return whether a URL holds a PNG file itself; nothing else is shown."""
    try:
        return url.startswith(_URL) and base64.b64decode(url[len(_URL) :], validate=True).startswith(b'\x89PNG')
    except (binascii.Error, ValueError):
        return False
