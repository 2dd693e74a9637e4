"""The report of an inspection: findings with evidence, proposals, warnings; as text and as a JSON document."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from ..storage.json_values import plain

Status = Literal['good', 'notice', 'problem']

COLOURS: dict[Status, str] = {'good': 'green', 'notice': 'yellow', 'problem': 'red'}


@dataclass(frozen=True)
class Finding:
    """One result."""

    key: str
    """Name in the JSON document."""
    text: str
    """The result in words, with its error."""
    evidence: str
    """What it rests on."""
    status: Status = 'good'
    values: dict[str, Any] = field(default_factory=dict)
    """The result in numbers, in SI units where the key says so; None where unknown."""


@dataclass(frozen=True)
class Proposal:
    """A change that the inspection proposes; nothing is changed unless it is accepted."""

    key: str
    """Name on the command line."""
    text: str
    is_usual: bool = True
    """Whether ``--apply`` takes it without being asked by name."""


@dataclass(frozen=True)
class Report:
    """Everything that is reported."""

    name: str
    findings: tuple[Finding, ...]
    proposals: tuple[Proposal, ...]
    seconds: float

    @property
    def colour(self) -> str:
        """'green', 'yellow' or 'red': that of the worst finding."""
        order: list[Status] = ['good', 'notice', 'problem']
        return COLOURS[max((item.status for item in self.findings), key=order.index, default='good')]

    @property
    def sentence(self) -> str:
        """The most important finding."""
        for status in ('problem', 'notice'):
            for item in self.findings:
                if item.status == status:
                    return item.text
        return 'No fault was found.'

    def document(self) -> dict[str, Any]:
        """Return the report in types of JSON."""
        document = {
            'name': self.name,
            'colour': self.colour,
            'sentence': self.sentence,
            'findings': {
                item.key: {'status': item.status, 'text': item.text, 'evidence': item.evidence, **item.values}
                for item in self.findings
            },
            'proposals': [{'key': item.key, 'text': item.text, 'usual': item.is_usual} for item in self.proposals],
            'seconds': round(self.seconds, 2),
        }
        return {key: plain(value) for key, value in document.items()}

    def text(self) -> str:
        """Return the report for people."""
        lines = [f'{self.name}: {self.colour}. {self.sentence}', '']
        marks: dict[Status, str] = {'good': ' ', 'notice': '!', 'problem': 'X'}
        for item in self.findings:
            lines.append(f'{marks[item.status]} {item.text}')
            lines.append(f'    {item.evidence}')
        if self.proposals:
            lines += ['', 'Proposals (applied by --apply only):']
            lines += [
                f'  {item.key}: {item.text}{"" if item.is_usual else " (only where named by --accept)"}'
                for item in self.proposals
            ]
        return '\n'.join(lines)


def metres(value: float) -> str:
    """Return a length with a unit that suits it."""
    size = abs(value)
    for unit, factor in (('m', 1.0), ('mm', 1e-3), ('um', 1e-6)):
        if size >= factor:
            return f'{value / factor:.4g} {unit}'
    return f'{value / 1e-9:.4g} nm'


def with_error(value: float, error: float, unit: str = '') -> str:
    """Return ``value`` with its error, rounded to two digits of the error."""
    if not (math.isfinite(error) and error > 0):
        return f'{value:.4g}{unit}'
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f'{value:.{digits}f} +- {error:.{digits}f}{unit}'
