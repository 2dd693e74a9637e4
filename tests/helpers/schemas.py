"""Validation against the schemas in ``specs/``."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

SPECS = Path(__file__).parents[2] / 'specs'


@cache
def validator(name: str) -> Draft202012Validator:
    schema = json.loads((SPECS / f'{name}.schema.json').read_text())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def validate(name: str, document: Any) -> None:  # noqa: ANN401 - a JSON tree
    """Raise unless ``document`` is as ``specs/NAME.schema.json`` says."""
    validator(name).validate(document)
