"""The factories of panels that the host calls when its window opens."""

from __future__ import annotations

import logging

from ptychodus.controller.processing import ReconstructorViewControllerFactory
from PyQt5.QtCore import Qt
from PyQt5.QtWidgets import QLabel, QWidget

from ..library import PtychoPINNPyTorchLibrary
from .page import SettingsPage

logger = logging.getLogger(__name__)


class PtychoPINNViewControllerFactory(ReconstructorViewControllerFactory):
    """Creates the panel of each reconstructor; all share one set of settings."""

    def __init__(self, library: PtychoPINNPyTorchLibrary) -> None:
        super().__init__()
        self._library = library
        self._pages: dict[str, SettingsPage] = {}

    @property
    def name(self) -> str:
        """Name of the library, by which the host finds the factory."""
        return self._library.name

    def create_view_controller(self, reconstructor_name: str) -> QWidget:
        """Return the panel of the reconstructor ``reconstructor_name`` (any case)."""
        page = SettingsPage(reconstructor_name, self._library.settings)
        self._pages[reconstructor_name.casefold()] = page
        return page


class GuardedViewControllerFactory(ReconstructorViewControllerFactory):
    """Shows a message in place of a panel that cannot be built; without it, the host could not start its window."""

    def __init__(self, factory: ReconstructorViewControllerFactory) -> None:
        super().__init__()
        self._factory = factory

    @property
    def name(self) -> str:
        """Name of the guarded factory."""
        return self._factory.name

    def create_view_controller(self, reconstructor_name: str) -> QWidget:
        """Return the panel of the guarded factory, or a label that says why there is none."""
        try:
            return self._factory.create_view_controller(reconstructor_name)
        except Exception as error:
            text = f'The panel of {self.name} cannot be shown: {type(error).__name__}: {error}'
            logger.warning(text)
            label = QLabel(text)
            label.setWordWrap(True)
            label.setAlignment(Qt.AlignmentFlag.AlignCenter)
            return label
