"""The tables of the mutation testing name modules, tests and lines that exist."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PACKAGE = ROOT / 'ptychopinn_torch_plugin'
TABLES = json.loads((HERE / 'mutated_modules.json').read_text(encoding='utf-8'))
NAMES = [path.relative_to(PACKAGE).with_suffix('').as_posix() for path in PACKAGE.rglob('*.py')]
MUTATED = ('physics/', 'engines/', 'storage/', 'worker/')
"""Folders of which every module is mutated or left out with a reason."""


def longest(name: str) -> str | None:
    return max((key for table in TABLES.values() for key in table if name.startswith(key)), key=len, default=None)


@pytest.mark.parametrize('key', [key for table in TABLES.values() for key in table])
def test_each_key_is_that_of_a_module(key: str) -> None:
    assert [name for name in NAMES if longest(name) == key]


def test_each_module_of_the_mutated_folders_has_a_key() -> None:
    names = [name for name in NAMES if name.startswith(MUTATED) and not name.endswith('__init__')]
    assert [name for name in names if longest(name) is None] == []


@pytest.mark.parametrize('test', sorted({test for tests in TABLES['tests'].values() for test in tests}))
def test_each_test_exists(test: str) -> None:
    path, _, function = test.partition('::')
    assert f'def {function}' in (ROOT / path).read_text(encoding='utf-8')


def test_each_equivalent_mutant_changes_a_line_of_its_module() -> None:
    entries = json.loads((HERE / 'equivalent_mutants.json').read_text(encoding='utf-8'))
    for entry in entries:
        lines = (ROOT / entry['module']).read_text(encoding='utf-8').splitlines()
        assert entry['before'] in ' '.join(line.strip() for line in lines), entry
        assert entry['reason']
    keys = [(entry['module'], entry['before'], entry['after']) for entry in entries]
    assert len(keys) == len(set(keys))
