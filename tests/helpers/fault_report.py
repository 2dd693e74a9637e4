"""The report of injected faults: what was broken on purpose, what the user read, what was kept, how long it took.

A plug-in of pytest. Tests record faults in the fixture ``fault_report``. The records are part of the reports of the
tests (so that it works under xdist), are summarised at the end of the run, and become ``docs/reliability.md`` when the
environment variable ``RELIABILITY_DOC`` names that file.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Generator, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

DOCUMENT_VARIABLE = 'RELIABILITY_DOC'
PREFACE = Path(__file__).parents[1] / 'reliability' / 'preface.md'
MUTATION = PREFACE.with_name('mutation.md')

_PROPERTY_ROW, _PROPERTY_COUNT = 'fault-row', 'fault-count'
_TIMES = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 240)

# What differs from run to run, and what stands in the document instead.
_UNSTABLE = (
    (re.compile(r'(?<![\w…/.])(?:/[\w.+@=\-]+)+/([\w.+@=\-]+)'), r'…/\1'),
    (re.compile(r'ptychopinn-\w{8}\b'), 'ptychopinn-*'),
    (re.compile(r'\b(pid|process)([ =])\d+'), r'\1\2…'),
    (re.compile(r' at 0x[0-9a-f]+'), ''),
    (re.compile(r'\s+'), ' '),
)


@dataclass(frozen=True)
class Row:
    """One fault of the table."""

    group: str
    fault: str
    sentence: str
    kept: str
    seconds: float


class FaultReport:
    """Faults that the tests of one process have recorded; the value of the fixture ``fault_report``."""

    def __init__(self) -> None:
        self._item: pytest.Item | None = None
        self._since = 0.0

    def begin(self, item: pytest.Item) -> None:
        """Assign the records that follow to the test ``item``."""
        self._item, self._since = item, time.monotonic()

    def record(
        self, fault: str, sentence: str, kept: str, seconds: float | None = None, *, group: str | None = None
    ) -> None:
        """Enter a fault that was injected and went well.

        Args:
            fault: what was broken, in a few words.
            sentence: what the user reads; paths, process numbers and random names are taken out.
            kept: what is left to the user.
            seconds: from the fault to the sentence; by default since the test began or its last row.
            group: heading of the row, by default the first sentence of the docstring of the test's module.
        """
        now = time.monotonic()
        took = now - self._since if seconds is None else seconds
        self._since = now
        row = Row(group or self._group(), fault, normalised(sentence), normalised(kept), round(took, 3))
        self._enter(_PROPERTY_ROW, asdict(row))

    def count(self, inputs: int, what: str) -> None:
        """Add ``inputs`` bad inputs of the kind ``what`` to the number that is printed at the end of the run."""
        self._enter(_PROPERTY_COUNT, {'inputs': inputs, 'what': what})

    def _enter(self, name: str, value: dict[str, Any]) -> None:
        if self._item is None:
            raise RuntimeError('Faults can be recorded inside a test only.')
        self._item.user_properties.append((name, value))

    def _group(self) -> str:
        module = getattr(self._item, 'module', None)
        text = ' '.join((getattr(module, '__doc__', None) or 'Other faults.').split())
        return re.split(r'[.:]( |$)', text, maxsplit=1)[0]


class _Summary:
    """The controller's side: collects what came with the reports."""

    def __init__(self) -> None:
        self.rows: dict[Row, float] = {}
        self.inputs: dict[str, int] = {}
        self.failed = {'crashes': 0, 'hangs': 0, 'non-finite products': 0}

    def add(self, report: pytest.TestReport) -> None:
        """Add the records of the test of ``report``, once, at its teardown; count how it failed."""
        entries: list[tuple[str, Any]] = [entry for entry in report.user_properties if entry[0].startswith('fault-')]
        text = str(report.longrepr) if report.failed else ''
        if report.failed and (entries or 'reliability' in report.nodeid or 'crashed while running' in text):
            kind = 'hangs' if 'Timeout' in text else 'non-finite products' if 'non-finite' in text else 'crashes'
            self.failed[kind] += 1
        if report.when != 'teardown':
            return
        for name, value in entries:
            if name == _PROPERTY_COUNT:
                self.inputs[value['what']] = self.inputs.get(value['what'], 0) + value['inputs']
            else:
                row = Row(**value | {'seconds': 0.0})
                self.rows[row] = max(value['seconds'], self.rows.get(row, 0.0))

    def line(self) -> str:
        """Return one line for the terminal."""
        ends = ', '.join(f'{number} {what}' for what, number in self.failed.items())
        return f'{sum(self.inputs.values())} bad inputs tried, {len(self.rows)} faults injected: {ends}'

    def document(self) -> str:
        """Return the text of ``docs/reliability.md``."""
        parts = [PREFACE.read_text(encoding='utf-8').rstrip()]
        for group in sorted({row.group for row in self.rows}):
            parts.append(f'## {group}\n\n' + '\n'.join(self._table(group)))
        if MUTATION.exists():  # written by ``make mutants``
            parts.append(MUTATION.read_text(encoding='utf-8').rstrip())
        return '\n\n'.join(parts) + '\n'

    def _table(self, group: str) -> Iterable[str]:
        yield '| fault | what the user sees | what is kept | seconds |'
        yield '| --- | --- | --- | --- |'
        for row in sorted((row for row in self.rows if row.group == group), key=lambda row: (row.fault, row.sentence)):
            cells = (row.fault, row.sentence, row.kept, _at_most(self.rows[row]))
            yield '| ' + ' | '.join(cell.replace('|', '\\|').replace('\n', ' ') for cell in cells) + ' |'


def normalised(sentence: str) -> str:
    """Return ``sentence`` without folders, process numbers and random names, which differ from run to run."""
    for pattern, replacement in _UNSTABLE:
        sentence = pattern.sub(replacement, sentence)
    return sentence.strip()


def _at_most(seconds: float) -> str:
    """Return an upper bound from a coarse series, so that the document does not change with every run."""
    return next((f'< {limit:g}' for limit in _TIMES if seconds < limit), f'{seconds:.0f}')


_REPORT = FaultReport()
_SUMMARY = pytest.StashKey[_Summary]()
_CONFIG: list[pytest.Config] = []


@pytest.fixture(scope='session')
def fault_report() -> FaultReport:
    """Return the record of injected faults; its scope is the session, so that hypothesis may use it."""
    return _REPORT


def pytest_configure(config: pytest.Config) -> None:
    """Begin an empty summary; under xdist that of the controller is used."""
    config.stash[_SUMMARY] = _Summary()
    _CONFIG.append(config)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the run."""
    _CONFIG.remove(config)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Assign the records that follow to ``item``."""
    _REPORT.begin(item)
    return (yield)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Add the records of a test; the controller receives those of every worker."""
    _CONFIG[-1].stash[_SUMMARY].add(report)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the sums, and write the document if one is asked for and nothing failed."""
    summary = config.stash[_SUMMARY]
    if summary.rows or summary.inputs:
        terminalreporter.write_sep('-', 'injected faults')
        terminalreporter.write_line(summary.line())
    path = os.environ.get(DOCUMENT_VARIABLE) if summary.rows else None
    if path and any(summary.failed.values()):
        terminalreporter.write_line(f'{path} is left as it was: a fault was not survived.')
    elif path:
        Path(path).write_text(summary.document(), encoding='utf-8')
        terminalreporter.write_line(f'{path} is written.')
