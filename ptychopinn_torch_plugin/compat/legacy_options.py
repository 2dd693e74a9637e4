"""PtychoPINN's options while they are mapped to the configuration of this package."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ..config import Config

Rule: TypeAlias = Callable[['LegacyOptions', Any], None]


@dataclass
class LegacyOptions:
    """The options that were given, and what they have set so far.

    Args:
        base: the configuration that the options change.
        given: the options with their values.
    """

    base: Config
    given: Mapping[str, Any]
    data: dict[str, Any] = field(default_factory=dict)
    """Fields of the result beside the configuration."""
    refusals: dict[str, str] = field(default_factory=dict)
    """Options that cannot be used, each with the reason."""
    notes: dict[str, str] = field(default_factory=dict)
    """Options that make no difference here, each with the reason."""
    _changes: dict[tuple[str, str], tuple[str, Any]] = field(default_factory=dict)
    _current: str = ''

    def apply(self, name: str, rule: str | Rule) -> None:
        """Apply ``rule`` to the option ``name``: set the field of this path, or call the function.

        A :class:`ValueError` of the function is the reason for a refusal, and kept: all are reported together.
        """
        self._current, value = name, self.given[name]
        try:
            if isinstance(rule, str):
                self.set(rule, value)
            else:
                rule(self, value)
        except (ValueError, TypeError) as error:
            self.refusals[name] = str(error)

    def set(self, path: str, value: object) -> None:
        """Set the field ``path``, written ``'section.name'``.

        Raises:
            ValueError: another option has set it to another value.
        """
        section, _, name = path.partition('.')
        earlier, other = self._changes.get((section, name), (self._current, value))
        if other != value:
            raise ValueError(f'{earlier} gives another value; choose one of the two')
        self._changes[section, name] = (self._current, value)

    def get(self, path: str) -> Any:  # noqa: ANN401 - fields have many types
        """Return the present value of the field ``path``."""
        section, _, name = path.partition('.')
        return self._changes.get((section, name), ('', getattr(getattr(self.base, section), name)))[1]

    def note(self, why: str) -> None:
        """Keep the reason why the present option makes no difference."""
        self.notes[self._current] = why

    def tree(self) -> dict[str, dict[str, Any]]:
        """Return the whole configuration with the changes, to be validated."""
        tree: dict[str, dict[str, Any]] = self.base.model_dump()
        for (section, name), (_, value) in self._changes.items():
            tree[section][name] = value
        return tree

    def source_of(self, location: tuple[int | str, ...]) -> str:
        """Return the option that set the field at ``location`` of the configuration, or the path of the field."""
        path = tuple(str(part) for part in location)
        if len(path) >= 2 and (path[0], path[1]) in self._changes:
            return self._changes[path[0], path[1]][0]
        # A whole section is refused where two of its fields do not go together.
        sources = [source for (section, _), (source, _) in self._changes.items() if path == (section,)]
        return ' and '.join(dict.fromkeys(sources)) or '.'.join(path)
