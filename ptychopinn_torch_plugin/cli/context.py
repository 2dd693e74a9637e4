"""What every command gets beside its words."""

from __future__ import annotations

from dataclasses import dataclass

from ..storage.written_files import WrittenFiles
from .signals import StopSignals


@dataclass(frozen=True)
class CommandContext:
    """The signals that came and the files that were written, for the command and for its report."""

    signals: StopSignals
    written: WrittenFiles
