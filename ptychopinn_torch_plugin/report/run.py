"""One run of an engine, as its report describes it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from ..config import Config
from ..data.scan import RawScan

RunKind = Literal['reconstruct', 'refine']

TITLES: dict[RunKind, str] = {
    'reconstruct': 'Reconstruction with a model, then refinement',
    'refine': 'Refinement without a model',
}


@dataclass(frozen=True, eq=False)
class Run:
    """What a report says of a reconstruction beside its result."""

    kind: RunKind
    scan: RawScan
    """The scan that was reconstructed: its name, and the probe and positions before the run."""
    config: Config
    started: datetime
    """Time at which the run began, with its time zone."""
    seconds: float
    """Duration of the run."""
    pixel_m: tuple[float, float] | None = None
    """Height and width of an object pixel in metres; None where they are not known."""
    warnings: tuple[str, ...] = ()
    """Warnings in the log of the run."""
    model_file: Path | None = None
    output: Path | None = None
    """The product or the arrays that were written; None where the result was returned only."""
    is_stopped: bool = False
    """Whether the run was stopped early."""
