"""The library that Ptychodus lists: three reconstructors over one set of settings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from ptychodus.api.reconstruct import Reconstructor, ReconstructorLibrary

from .reconstructors import PtychoPINNReconstructor, RefineReconstructor
from .runs import LOGGER_NAME
from .settings import PtychoPINNSettings

if TYPE_CHECKING:
    from ptychodus.api.settings import SettingsRegistry

LIBRARY_NAME: Final = 'PtychoPINN (PyTorch)'


class PtychoPINNPyTorchLibrary(ReconstructorLibrary):
    """The reconstructors ``PtychoPINN (PyTorch)_PINN``, ``..._Supervised`` and ``..._Refine``."""

    def __init__(self, settings_registry: SettingsRegistry) -> None:
        super().__init__(LOGGER_NAME)
        self.settings = PtychoPINNSettings(settings_registry)
        self._reconstructors = (
            PtychoPINNReconstructor('PINN', 'pinn', self.settings),
            PtychoPINNReconstructor('Supervised', 'supervised', self.settings),
            RefineReconstructor('Refine', self.settings),
        )

    @property
    def name(self) -> str:
        """Name in settings files and in the window; in the host's keys it is case-folded."""
        return LIBRARY_NAME

    def __iter__(self) -> Iterator[Reconstructor]:
        return iter(self._reconstructors)
