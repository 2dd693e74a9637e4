"""The ledger of injected faults: what was broken on purpose, what the user read, what was kept, how long it took.

A plug-in of pytest. Tests write into the fixture ``ledger``; what they wrote travels with their reports (so it works
under xdist), is summed up at the end of the run, and becomes ``docs/reliability.md`` when the environment variable
``RELIABILITY_DOC`` names that file.
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
PREFACE = Path(__file__).parent / 'reliability' / 'preface.md'

_PROPERTY_ROW, _PROPERTY_COUNT = 'ledger-row', 'ledger-count'
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


class Ledger:
    """What the tests of one process write into; the fixture of the same name."""

    def __init__(self) -> None:
        self._item: pytest.Item | None = None
        self._since = 0.0

    def begin(self, item: pytest.Item) -> None:
        """From now on everything belongs to the test ``item``."""
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
            raise RuntimeError('The ledger is open inside of a test only.')
        self._item.user_properties.append((name, value))

    def _group(self) -> str:
        module = getattr(self._item, 'module', None)
        text = ' '.join((getattr(module, '__doc__', None) or 'Other faults.').split())
        return re.split(r'[.:]( |$)', text, maxsplit=1)[0]


class _Book:
    """The controller's side: collects what came with the reports."""

    def __init__(self) -> None:
        self.rows: dict[Row, float] = {}
        self.inputs: dict[str, int] = {}
        self.failed = {'crashes': 0, 'hangs': 0, 'non-finite products': 0}

    def add(self, report: pytest.TestReport) -> None:
        """Take over what the test of ``report`` wrote, once, when it is torn down; note how it failed."""
        entries: list[tuple[str, Any]] = [entry for entry in report.user_properties if entry[0].startswith('ledger-')]
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

    def summary(self) -> str:
        """One line for the terminal."""
        ends = ', '.join(f'{number} {what}' for what, number in self.failed.items())
        return f'{sum(self.inputs.values())} bad inputs tried, {len(self.rows)} faults injected: {ends}'

    def document(self) -> str:
        """``docs/reliability.md``."""
        parts = [PREFACE.read_text(encoding='utf-8').rstrip()]
        for group in sorted({row.group for row in self.rows}):
            parts.append(f'## {group}\n\n' + '\n'.join(self._table(group)))
        return '\n\n'.join(parts) + '\n'

    def _table(self, group: str) -> Iterable[str]:
        yield '| fault | what the user sees | what is kept | seconds |'
        yield '| --- | --- | --- | --- |'
        for row in sorted((row for row in self.rows if row.group == group), key=lambda row: (row.fault, row.sentence)):
            cells = (row.fault, row.sentence, row.kept, _at_most(self.rows[row]))
            yield '| ' + ' | '.join(cell.replace('|', '\\|').replace('\n', ' ') for cell in cells) + ' |'


def normalised(sentence: str) -> str:
    """``sentence`` without what differs from run to run: folders, process numbers, random names."""
    for pattern, replacement in _UNSTABLE:
        sentence = pattern.sub(replacement, sentence)
    return sentence.strip()


def _at_most(seconds: float) -> str:
    """An upper bound from a coarse series, so that the document does not change with every run."""
    return next((f'< {limit:g}' for limit in _TIMES if seconds < limit), f'{seconds:.0f}')


_LEDGER = Ledger()
_BOOK = pytest.StashKey[_Book]()
_CONFIG: list[pytest.Config] = []


@pytest.fixture(scope='session')
def ledger() -> Ledger:
    """Where a test enters the faults it injected; of the session, so that hypothesis may use it, too."""
    return _LEDGER


def pytest_configure(config: pytest.Config) -> None:
    """Open the book; under xdist that of the controller is the one that counts."""
    config.stash[_BOOK] = _Book()
    _CONFIG.append(config)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Forget the run."""
    _CONFIG.remove(config)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Tell the ledger whose rows come next."""
    _LEDGER.begin(item)
    return (yield)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Collect what a test wrote; the controller hears of every worker's tests."""
    _CONFIG[-1].stash[_BOOK].add(report)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the sums, and write the document if one is asked for and nothing failed."""
    book = config.stash[_BOOK]
    if book.rows or book.inputs:
        terminalreporter.write_sep('-', 'ledger')
        terminalreporter.write_line(book.summary())
    path = os.environ.get(DOCUMENT_VARIABLE) if book.rows else None
    if path and any(book.failed.values()):
        terminalreporter.write_line(f'{path} is left as it was: a fault was not survived.')
    elif path:
        Path(path).write_text(book.document(), encoding='utf-8')
        terminalreporter.write_line(f'{path} is written.')
