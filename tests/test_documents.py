"""The documents tell the truth: tests, files, commands and settings they name exist, and the site builds."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ptychopinn_torch_plugin.cli.parser import PROGRAM, build_parser
from ptychopinn_torch_plugin.config import Config

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob('*.md'), *(ROOT / 'docs').rglob('*.md'), *(ROOT / 'specs').rglob('*.md')])
TEST_NAME = re.compile(r'(tests/[\w/]+\.py)::(\w+)')
LINK = re.compile(r'\]\((?!https?:)([^)#]+)')
CODE_BLOCK = re.compile(r'^```\w*\n(.*?)^```', re.MULTILINE | re.DOTALL)
MODULES = re.compile(r'^<!-- modules: ([\w.]+) -->$', re.MULTILINE)
SHELL_SIGNS = {'&&', ';', '|', '>', '2>'}


@pytest.mark.parametrize('document', DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_named_tests_and_linked_files_exist(document: Path) -> None:
    text = document.read_text()
    for module, name in TEST_NAME.findall(text):
        tree = ast.parse((ROOT / module).read_text())
        assert any(isinstance(node, ast.FunctionDef) and node.name == name for node in ast.walk(tree)), (module, name)
    for link in LINK.findall(text):
        assert (document.parent / link).exists(), link


def command_lines(text: str) -> list[list[str]]:
    """The words after the program's name, of every line in a code block that begins with it."""
    found = []
    for block in CODE_BLOCK.findall(text):
        for line in block.replace('\\\n', ' ').splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == [PROGRAM]:
                end = next((number for number, word in enumerate(words) if word in SHELL_SIGNS), len(words))
                found.append(words[1:end])
    return found


@pytest.mark.parametrize('document', DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_command_lines_parse(document: Path) -> None:
    for words in command_lines(document.read_text()):
        parsed = build_parser().parse_args(words)
        for change in getattr(parsed, 'set', []):
            section, name = change.partition('=')[0].split('.')
            assert name in type(getattr(Config(), section)).model_fields, change


def test_there_are_documents() -> None:
    assert len(DOCUMENTS) > 5
    assert sum(len(TEST_NAME.findall(document.read_text())) for document in DOCUMENTS) > 50
    assert sum(len(command_lines(document.read_text())) for document in DOCUMENTS) > 10


def test_the_reference_has_a_place_for_every_module() -> None:
    named = {name for page in (ROOT / 'docs' / 'api').glob('*.md') for name in MODULES.findall(page.read_text())}
    for path in (ROOT / 'ptychopinn_torch_plugin').rglob('*.py'):
        parts = path.relative_to(ROOT).with_suffix('').parts
        if parts[-1] == '__main__' or (len(parts) == 2 and parts[-1] == '__init__'):
            continue
        prefixes = {'.'.join(parts[:length]) for length in range(2, len(parts) + 1)}
        package_itself = path.name == '__init__.py' and any(name.startswith('.'.join(parts[:-1])) for name in named)
        assert prefixes & named or package_itself, f'name {".".join(parts)} on a page in docs/api'


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, '-m', 'sphinx', '-W', '--keep-going', '-q', '-b', 'html', '-d', str(tmp_path / 'trees')]
    done = subprocess.run(
        [*command, str(ROOT / 'docs'), str(tmp_path / 'site')], capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / 'site' / 'api' / 'data.html').read_text()
    assert 'id="ptychopinn_torch_plugin.data.scan.make_raw_scan"' in page
    assert 'training.learning_rate' in (tmp_path / 'site' / 'settings.html').read_text()
