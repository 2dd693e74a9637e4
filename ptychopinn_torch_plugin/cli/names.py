"""The name of the program, and what was probably meant by a word that it does not know."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Final

PROGRAM: Final = 'ptychopinn-torch'


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return a sentence with the most similar of the ``known`` words, after a space; empty if none is similar."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f' Did you mean "{found[0]}"?' if found else ''
