"""The result of a command: one value, printed for people or as one JSON document."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..storage.json_values import plain
from .codes import ExitCode


@dataclass(frozen=True)
class CommandResult:
    """Result of a command."""

    document: Mapping[str, Any] = field(default_factory=dict)
    """For scripts: values of JSON, and paths."""
    text: str = ''
    """For people."""
    code: int = ExitCode.DONE


def failure(kind: str, message: str, code: int, document: Mapping[str, Any]) -> CommandResult:
    """Return the result of a command that ended with an error; its message is printed on stderr elsewhere."""
    return CommandResult({**document, 'error': {'type': kind, 'message': message}}, '', code)


def json_of(result: CommandResult, command: str, written: Sequence[Path]) -> str:
    """Return ``result`` as a JSON document: ``command``, ``ok``, ``exit_code``, ``written``, and its own keys."""
    code = int(result.code)
    envelope = {'command': command, 'ok': code == ExitCode.DONE, 'exit_code': code, 'written': list(written)}
    return json.dumps(plain(envelope | dict(result.document)), indent=2)


def table(rows: Mapping[str, object]) -> str:
    """Return lines of names and values for people; rows whose value is None are left out."""
    shown = {name: value for name, value in rows.items() if value is not None}
    width = max((len(name) for name in shown), default=0)
    return '\n'.join(f'{name:<{width}}  {value}' for name, value in shown.items())
