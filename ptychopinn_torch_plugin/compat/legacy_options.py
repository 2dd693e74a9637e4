"""A configuration while it is being mapped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..config import Config


@dataclass(frozen=True)
class Name:
    """One of PtychoPINN's names."""

    name: str
    """As its users write it."""
    section: str
    """Where it is found: 'model', 'training', 'inference', 'execution', or 'further' for names of this package."""
    becomes: str
    """What it sets, for the table: a field of the tree, or a word on where it goes."""
    meaning: str
    """How it is honoured and what is refused, one or two sentences for the table."""
    rule: Callable[[Draft, Any], None]
    """Puts the value into the draft, or raises :class:`ValueError` with the reason for refusing it."""


@dataclass
class Draft:
    """What has been mapped so far.

    Args:
        base: the tree that names change.
        given: the names that were given, with their values.
    """

    base: Config
    given: Mapping[str, Any]
    data: dict[str, Any] = field(default_factory=dict)
    """Fields of the result beside the tree."""
    refusals: list[tuple[str, str]] = field(default_factory=list)
    """Names that cannot be honoured, each with the reason."""
    _changes: dict[tuple[str, str], tuple[str, Any]] = field(default_factory=dict)
    _current: str = ''

    def run(self, row: Name) -> None:
        """Apply the rule of ``row`` to its value; a refusal is kept, so that all are told at once."""
        self._current = row.name
        try:
            row.rule(self, self.given[row.name])
        except (ValueError, TypeError) as error:
            self.refuse(row.name, str(error))

    def set(self, path: str, value: object) -> None:
        """Set a field, ``'section.name'``.

        Raises:
            ValueError: another name has set it to another value.
        """
        section, _, name = path.partition('.')
        key = (section, name)
        if key in self._changes and self._changes[key][1] != value:
            raise ValueError(f'{self._changes[key][0]} says otherwise; give one of the two')
        self._changes[key] = (self._current, value)

    def get(self, path: str) -> Any:  # noqa: ANN401 - fields have many types
        """The value that a field has so far."""
        section, _, name = path.partition('.')
        if (section, name) in self._changes:
            return self._changes[section, name][1]
        return getattr(getattr(self.base, section), name)

    def refuse(self, name: str, why: str) -> None:
        """Keep a refusal."""
        self.refusals.append((name, why))

    def tree(self) -> dict[str, dict[str, Any]]:
        """The whole tree with the changes, to be validated."""
        tree: dict[str, dict[str, Any]] = self.base.model_dump()
        for (section, name), (_, value) in self._changes.items():
            tree[section][name] = value
        return tree

    def source_of(self, location: tuple[int | str, ...]) -> str:
        """The name that set the field at ``location`` of the tree, or the path of the field."""
        path = tuple(str(part) for part in location)
        if len(path) >= 2 and (path[0], path[1]) in self._changes:
            return self._changes[path[0], path[1]][0]
        # A whole section is refused where two of its fields do not go together.
        sources = [source for (section, _), (source, _) in self._changes.items() if path == (section,)]
        return ' and '.join(dict.fromkeys(sources)) or '.'.join(path)
