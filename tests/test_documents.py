"""The documents tell the truth: the tests and files they name exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob('*.md'), *(ROOT / 'docs').rglob('*.md'), *(ROOT / 'specs').rglob('*.md')])
TEST_NAME = re.compile(r'(tests/[\w/]+\.py)::(\w+)')
LINK = re.compile(r'\]\((?!https?:)([^)#]+)')


@pytest.mark.parametrize('document', DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_named_tests_and_linked_files_exist(document: Path) -> None:
    text = document.read_text()
    for module, name in TEST_NAME.findall(text):
        tree = ast.parse((ROOT / module).read_text())
        assert any(isinstance(node, ast.FunctionDef) and node.name == name for node in ast.walk(tree)), (module, name)
    for link in LINK.findall(text):
        assert (document.parent / link).exists(), link


def test_there_are_documents() -> None:
    assert len(DOCUMENTS) > 5
    assert sum(len(TEST_NAME.findall(document.read_text())) for document in DOCUMENTS) > 50
