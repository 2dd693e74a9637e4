"""Read files that anybody may have written.

Every file that this package reads goes through this module: a regular file (no FIFO, socket, device or folder, which
may never end), of bounded size, and text of bounded nesting. ``specs/files.md`` lists what each reader accepts. All
functions raise the error class that the caller names, with one sentence that begins with the path.

Neither torch nor Ptychodus is imported.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from ..dependencies import missing
from ..errors import ConfigurationError, InputError, PtychoPINNError
from ..limits import physical_memory

MAX_TEXT_BYTES = 256 * 2**10
"""Size of a settings or configuration file; one with every name of this package has about 10 KiB."""
MAX_DEPTH = 32
"""Nesting of JSON and YAML; the configuration tree has three levels."""
MAX_VALUES = 10_000
"""Values in a JSON or YAML file."""
MAX_SCALAR_CHARS = 10_000
"""Length of one value in YAML: numbers are converted in quadratic time."""
HARMLESS_BYTES = 2**26
MAX_GROWTH = 250
"""Times the size of a file that its arrays may need in memory, above ``HARMLESS_BYTES``: files made to fill the memory
need more, patterns of a detector less."""
_SHOWN_CHARS = 60

_KINDS = (
    (stat.S_ISDIR, 'a folder'),
    (stat.S_ISFIFO, 'a FIFO (named pipe)'),
    (stat.S_ISSOCK, 'a socket'),
    (stat.S_ISCHR, 'a device'),
    (stat.S_ISBLK, 'a device'),
    (stat.S_ISLNK, 'a symbolic link'),
)
_BRACKETS = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{}]', re.DOTALL)


@contextmanager
def open_regular(
    path: Path,
    error: type[PtychoPINNError] = InputError,
    *,
    max_bytes: int | None = None,
    follow_links: bool = True,
) -> Iterator[BinaryIO]:
    """Open a regular file for reading in binary. Nothing else is opened, so that opening never waits.

    Args:
        path: the file.
        error: class of the error that is raised.
        max_bytes: size above which the file is refused; None takes any size (the caller then bounds what it reads).
        follow_links: accept a symbolic link to a regular file. Data folders hold such links; in folders that other
            users can write to, pass False.

    Yields:
        The open file.

    Raises:
        error: the file does not exist, cannot be read, is not a regular file, or is too large.
    """
    flags = os.O_RDONLY | getattr(os, 'O_NONBLOCK', 0) | getattr(os, 'O_CLOEXEC', 0) | getattr(os, 'O_BINARY', 0)
    if not follow_links:
        flags |= getattr(os, 'O_NOFOLLOW', 0)
    try:
        # Checked before, because opening a device can have an effect, and after, because the path may be replaced.
        _refuse_irregular(path, path.stat(follow_symlinks=follow_links), error)
        descriptor = os.open(path, flags)
    except (OSError, ValueError) as failure:
        if isinstance(failure, PtychoPINNError):
            raise
        raise error(_unreadable(path, failure)) from failure
    with os.fdopen(descriptor, 'rb') as file:
        status = os.fstat(descriptor)
        _refuse_irregular(path, status, error)
        if max_bytes is not None and status.st_size > max_bytes:
            raise error(
                f'{path} has {status.st_size:,} bytes, more than the {max_bytes:,} that are read: check the file.'
            )
        yield file


def read_bytes(
    path: Path, max_bytes: int, error: type[PtychoPINNError] = InputError, *, follow_links: bool = True
) -> bytes:
    """Read a regular file of at most ``max_bytes`` bytes.

    Raises:
        error: as :func:`open_regular`.
    """
    with open_regular(path, error, max_bytes=max_bytes, follow_links=follow_links) as file:
        try:
            content = file.read(max_bytes + 1)
        except OSError as failure:
            raise error(_unreadable(path, failure)) from failure
    if len(content) > max_bytes:
        raise error(f'{path} grew beyond the {max_bytes:,} bytes that are read: check what writes to it.')
    return content


def read_text(path: Path, error: type[PtychoPINNError] = ConfigurationError, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """Read a text file in UTF-8, with or without a byte order mark.

    Raises:
        error: as :func:`open_regular`; the file is not UTF-8.
    """
    content = read_bytes(path, max_bytes, error)
    try:
        return content.decode('utf-8-sig')
    except UnicodeDecodeError as failure:
        raise error(
            f'{path} is not text in UTF-8 (byte {failure.start} is 0x{content[failure.start]:02x}): save it in UTF-8.'
        ) from failure


def parse_json(
    text: str,
    path: Path,
    error: type[PtychoPINNError] = ConfigurationError,
    *,
    max_values: int | None = MAX_VALUES,
    max_depth: int = MAX_DEPTH,
) -> Any:  # noqa: ANN401 - any JSON value
    """Parse JSON whose nesting and number of values are bounded.

    Args:
        text: the JSON text.
        path: the file that it comes from, for the message.
        error: class of the error that is raised.
        max_values: largest number of values; None leaves it to the size of ``text``.
        max_depth: deepest nesting of lists and objects.

    Raises:
        error: the text is no JSON, too deep, too long, or gives a key twice.
    """
    if max_values is not None and text.count(',') + text.count('[') + text.count('{') > max_values:
        raise error(f'{path} holds more than {max_values:,} values: the file is damaged, or not of this package.')
    if _depth(text, max_depth) > max_depth:
        raise error(f'{path} is nested more than {max_depth} levels deep: the file is damaged, or not of this package.')
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except _RepeatedKeyError as failure:
        raise error(f'{path} gives "{printable(str(failure))}" twice: remove one of them.') from failure
    except (ValueError, RecursionError) as failure:
        raise error(
            f'{path} cannot be read as JSON ({printable(str(failure), 200)}): correct or replace it.'
        ) from failure


def parse_yaml(text: str, path: Path, error: type[PtychoPINNError] = ConfigurationError) -> Any:  # noqa: ANN401 - any value
    """Parse YAML of plain values under names. Nesting and number of values are bounded, and there are no aliases.

    A few hundred bytes of aliases to aliases can stand for gigabytes of values.

    Raises:
        error: the text is no YAML, too deep, too long, has an alias, gives a key twice, or has a key that is no text.
        MissingDependencyError: pyyaml is not installed.
    """
    try:
        import yaml
    except ImportError as failure:
        raise missing(failure) from failure

    class Loader(yaml.SafeLoader):
        """The loader of plain values, which refuses a key that is given twice or is no text."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            """Construct the mapping of ``node``."""
            keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
            repeated = next((key for key, number in keys.items() if number > 1), None)
            if repeated is not None:
                raise _RepeatedKeyError(repeated)
            mapping = super().construct_mapping(node, deep=deep)
            wrong = next((key for key in mapping if not isinstance(key, str)), '')
            if wrong != '':
                raise error(f'{path} holds no names with values at "{wrong}": write "nepochs: 50", one a line.')
            return mapping

    depth = 0
    try:
        for number, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent):
                raise error(f'{path} uses the alias *{printable(str(event.anchor))}: write the values out instead.')
            if depth > MAX_DEPTH or number > 2 * MAX_VALUES:
                raise error(
                    f'{path} is nested more than {MAX_DEPTH} levels deep or holds more than {MAX_VALUES:,} values: it '
                    'is no configuration file.'
                )
            if isinstance(event, yaml.ScalarEvent) and len(event.value) > MAX_SCALAR_CHARS:
                raise error(f'{path} holds a value of more than {MAX_SCALAR_CHARS:,} characters: shorten it.')
        return yaml.load(text, Loader)  # noqa: S506 - a SafeLoader
    except _RepeatedKeyError as failure:
        raise error(f'{path} gives "{printable(str(failure))}" twice: remove one of them.') from failure
    except PtychoPINNError:
        raise
    except (yaml.YAMLError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError) as failure:
        # SafeLoader raises the latter for malformed dates, numbers and keys that cannot be hashed.
        reason = printable(' '.join(str(failure).split()), 300)
        raise error(f'{path} cannot be read as YAML ({reason}): correct or replace it.') from failure


def check_declared_bytes(path: Path, declared: int, packed: int, error: type[PtychoPINNError] = InputError) -> None:
    """Refuse arrays that do not fit into memory, or that grow as files do that are made to fill it.

    Args:
        path: the file.
        declared: bytes of the arrays in memory.
        packed: bytes of the file.
        error: class of the error that is raised.

    Raises:
        error: ``declared`` is more than the memory of this machine, or more than ``HARMLESS_BYTES`` and ``MAX_GROWTH``
            times ``packed``.
    """
    there = physical_memory()
    if declared > there:
        raise error(
            f'{path} declares arrays of {declared / 2**30:.4g} GiB, more than the {there / 2**30:.4g} GiB of memory of '
            'this machine: crop or bin the patterns, or save fewer.'
        )
    if declared > HARMLESS_BYTES + MAX_GROWTH * packed:
        raise error(
            f'{path} unpacks from {packed:,} to {declared:,} bytes, more than {MAX_GROWTH} times its size, as files do '
            'that are made to fill the memory: if it is yours, save it without compression.'
        )


def printable(text: str, length: int = _SHOWN_CHARS) -> str:
    """Return ``text`` as a message may show it: in ASCII, on one line, of at most ``length`` characters."""
    shown = text.encode('unicode_escape').decode('ascii')
    return shown if len(shown) <= length else shown[:length] + '...'


def _refuse_irregular(path: Path, status: os.stat_result, error: type[PtychoPINNError]) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = next((name for test, name in _KINDS if test(status.st_mode)), 'no regular file')
        raise error(f'{path} is {kind}, not a file: choose a file.')


def _unreadable(path: Path, failure: Exception) -> str:
    if isinstance(failure, FileNotFoundError):
        return f'{path} does not exist.'
    if isinstance(failure, OSError):
        if failure.errno == errno.ELOOP:  # a chain of links that returns to itself
            return f'{path} is a symbolic link that leads nowhere: choose a file.'
        return f'{path} cannot be read ({failure.strerror}): check its permissions or choose another file.'
    return f'{printable(str(path))} is no path of a file ({failure}).'


def _depth(text: str, limit: int) -> int:
    """Return the deepest nesting of brackets outside of strings in ``text``, or the first one above ``limit``."""
    depth = deepest = 0
    for match in _BRACKETS.finditer(text):
        if match[0] in '[{':
            depth += 1
            deepest = max(deepest, depth)
            if depth > limit:
                return depth
        elif match[0] in ']}':
            depth -= 1
    return deepest


class _RepeatedKeyError(Exception):
    """An object or mapping gives a key twice."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object of ``pairs``, whose keys must differ."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _RepeatedKeyError(key)
        found[key] = value
    return found
