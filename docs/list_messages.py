"""Lists the error messages of this package for docs/messages.md, from the code."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import ptychopinn_torch_plugin
from ptychopinn_torch_plugin import errors

PACKAGE = Path(ptychopinn_torch_plugin.__file__).parent
DOORS = {
    'reading': (
        'data',
        'inspection',
        'cli/inputs.py',
        'cli/headers.py',
        'storage/checked_files.py',
        'storage/tensor_file.py',
    ),
    'models': ('storage/model_file.py', 'host/model_facts.py', 'models', 'engines/network.py'),
    'training': ('training',),
    'reconstruction': ('engines', 'metrics', 'physics'),
    'window': ('host',),
    'worker': ('worker',),
    'command': ('cli', 'report', 'storage', 'demo', 'doctor.py', 'dependencies.py'),
    'workflows': ('compat', 'workflows.py', 'config.py'),
}
"""Where a user meets the messages of which files; a file belongs to the first door that names it or its folder."""
_ERRORS = {name for name, item in vars(errors).items() if isinstance(item, type) and issubclass(item, Exception)}
_CALLABLES = _ERRORS | {'error'}
"""``error`` is the class that a function of storage was given, and the method of a log."""
_FORMAT = re.compile(r'%[sdr]')
_DOTS = re.compile(r'\.\.\.\S*')
SHORTEST_SENTENCE = 3
"""Words, without what stands in place of values."""


def text_of(node: ast.AST | None) -> str | None:
    """Return a string of the code with dots in place of its values; None for anything else."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        parts = [str(part.value) if isinstance(part, ast.Constant) else '...' for part in node.values]
        return ''.join(parts)
    return None


def door_of(path: Path) -> str:
    """Return the door of a file of the package.

    Raises:
        ValueError: no door names the file.
    """
    name = path.relative_to(PACKAGE).as_posix()
    exact = [door for door, places in DOORS.items() if name in places]
    folder = [door for door, places in DOORS.items() if name.split('/')[0] in places]
    if not exact + folder:
        raise ValueError(f'{name} raises errors: name its door in docs/list_messages.py.')
    return (exact + folder)[0]


def messages() -> dict[str, list[str]]:
    """Return the messages of every door, sorted, each once."""
    found: dict[str, set[str]] = {door: set() for door in DOORS}
    for path in sorted(PACKAGE.rglob('*.py')):
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, 'attr', '')
            text = text_of(node.args[0]) if name in _CALLABLES else None
            text = _FORMAT.sub('...', text or '')
            if len(_DOTS.sub('', text).split()) >= SHORTEST_SENTENCE:
                found[door_of(path)].add(text)
    return {door: sorted(texts, key=lambda text: text.lstrip('. -').casefold()) for door, texts in found.items()}


def messages_list(door: str) -> str:
    """Return the messages of a door as a Markdown list that opens on a click."""
    texts = messages()[door]
    items = '\n'.join(f'- {_escaped(text)}' for text in texts)
    return f'<details><summary>All {len(texts)} messages</summary>\n\n{items}\n\n</details>'


def _escaped(text: str) -> str:
    for sign in '\\`*_<>[]|-':
        text = text.replace(sign, f'\\{sign}')
    return ' '.join(text.split())
