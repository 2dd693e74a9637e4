"""The library that Ptychodus lists: three reconstructors over one set of settings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from ptychodus.api.reconstruct import Reconstructor, ReconstructorLibrary

from ..estimate import Calibration
from .reconstructors import PtychoPINNReconstructor, RefineReconstructor
from .runs import LOGGER_NAME, WorkerReconstructor
from .settings import PtychoPINNSettings

if TYPE_CHECKING:
    from ptychodus.api.settings import SettingsRegistry

LIBRARY_NAME: Final = 'PtychoPINN (PyTorch)'


class PtychoPINNPyTorchLibrary(ReconstructorLibrary):
    """The reconstructors ``PtychoPINN (PyTorch)_PINN``, ``..._Supervised`` and ``..._Refine``."""

    def __init__(self, settings_registry: SettingsRegistry) -> None:
        super().__init__(LOGGER_NAME)
        self.settings = PtychoPINNSettings(settings_registry)
        self.calibration = Calibration()
        """Corrects estimates by the runs of this session."""
        self._reconstructors = (
            PtychoPINNReconstructor('PINN', 'pinn', self.settings, self._set_newest),
            PtychoPINNReconstructor('Supervised', 'supervised', self.settings, self._set_newest),
            RefineReconstructor('Refine', self.settings, self._set_newest),
        )
        self.newest: WorkerReconstructor | None = None
        """The reconstructor that runs, or that ran last; None before the first run."""

    def _set_newest(self, reconstructor: WorkerReconstructor) -> None:
        self.newest = reconstructor

    @property
    def name(self) -> str:
        """Name in settings files and in the window; in the host's keys it is case-folded."""
        return LIBRARY_NAME

    def __iter__(self) -> Iterator[Reconstructor]:
        return iter(self._reconstructors)
