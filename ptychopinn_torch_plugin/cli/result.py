"""What a command has to say: one value, printed for people or as one JSON document."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from .codes import ExitCode


@dataclass(frozen=True)
class Outcome:
    """Result of a command."""

    document: Mapping[str, Any] = field(default_factory=dict)
    """For scripts: what JSON can hold, and paths."""
    text: str = ''
    """For people."""
    code: ExitCode = ExitCode.DONE


def failure(kind: str, message: str, code: ExitCode) -> Outcome:
    """The outcome of a command that ended with an error; the message has been printed on stderr already."""
    return Outcome({'error': {'type': kind, 'message': message}}, '', code)


def report(outcome: Outcome, command: str, *, as_json: bool, stdout: TextIO) -> None:
    """Print ``outcome``: its text, or one JSON document with ``command``, ``ok``, ``exit_code`` and its own keys."""
    if as_json:
        envelope = {'command': command, 'ok': outcome.code is ExitCode.DONE, 'exit_code': int(outcome.code)}
        stdout.write(json.dumps(plain(envelope | dict(outcome.document)), indent=2) + '\n')
    elif outcome.text:
        stdout.write(outcome.text + '\n')
    stdout.flush()


def plain(value: Any) -> Any:  # noqa: ANN401 - a JSON tree
    """``value`` as JSON can hold it: paths as strings, numbers of numpy as Python's, what is not finite as null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, 'tolist'):  # an array or a number of numpy
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def table(rows: Mapping[str, object]) -> str:
    """Lines of names and values for people; rows whose value is None are left out."""
    shown = {name: value for name, value in rows.items() if value is not None}
    width = max((len(name) for name in shown), default=0)
    return '\n'.join(f'{name:<{width}}  {value}' for name, value in shown.items())
