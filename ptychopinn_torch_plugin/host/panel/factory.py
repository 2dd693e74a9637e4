"""The factories of panels that the host calls when its window opens."""

from __future__ import annotations

import logging
from functools import partial
from typing import Final

from ptychodus.controller.processing import ReconstructorViewControllerFactory
from PyQt5.QtCore import Qt, QTimer
from PyQt5.QtWidgets import QLabel, QWidget

from ...errors import ConfigurationError, ModelFileError
from ...estimate import Work, sentence
from ..contract import HostWindow, WindowAware
from ..library import PtychoPINNPyTorchLibrary
from ..reconstructors import PtychoPINNReconstructor
from .page import SettingsPage
from .run_view import RunView
from .selection import SelectedScan

logger = logging.getLogger(__name__)

MODEL_INTERVAL_MS: Final = 1000
"""Time between two looks for another loaded model."""


class PtychoPINNViewControllerFactory(ReconstructorViewControllerFactory):
    """Creates the panel of each reconstructor; all share one set of settings."""

    def __init__(self, library: PtychoPINNPyTorchLibrary) -> None:
        super().__init__()
        self._library = library
        self._pages: dict[str, SettingsPage] = {}
        self._timer = QTimer()
        self.run_view: RunView | None = None
        """Shows the runs; None before the window is complete."""

    @property
    def name(self) -> str:
        """Name of the library, by which the host finds the factory."""
        return self._library.name

    def create_view_controller(self, reconstructor_name: str) -> QWidget:
        """Return the panel of the reconstructor ``reconstructor_name`` (any case)."""
        page = SettingsPage(reconstructor_name, self._library.settings)
        self._pages[reconstructor_name.casefold()] = page
        return page

    def connect_window(self, window: HostWindow) -> None:
        """Show the runs and, for the selected product, what the next one would cost."""
        selected = SelectedScan(window)
        self.run_view = RunView(self._library, window, selected)
        for name, page in self._pages.items():
            page.set_estimate(partial(self._estimate, selected, name))
            page.check_button.clicked.connect(lambda _checked, box=page.inspection_box: box.check(window))
            selected.add_listener(page.refresh)
        self._timer.timeout.connect(partial(self._show_models, selected))
        self._timer.start(MODEL_INTERVAL_MS)

    def _show_models(self, selected: SelectedScan) -> None:
        """Show the loaded models: they are loaded, trained and replaced in other threads and by other programs."""
        for reconstructor in self._library:
            box = self._pages[reconstructor.name.casefold()].model_box
            if box is not None and box.isVisible() and isinstance(reconstructor, PtychoPINNReconstructor):
                try:
                    box.show_model(reconstructor.model_file, selected)
                except ModelFileError as error:
                    box.text.setText(str(error))

    def _estimate(self, selected: SelectedScan, reconstructor_name: str) -> str:
        """Return the expected cost of a run of the selected product, in words; empty where nothing can be told."""
        size = selected.size()
        if size is None:
            return ''
        works: list[Work] = ['refine'] if reconstructor_name == 'refine' else ['train', 'reconstruct']
        try:
            config = self._library.settings.build_config('pinn')
        except ConfigurationError as error:
            return str(error)
        calibration = self._library.calibration
        texts = [sentence(work, size, config, calibration) for work in works]
        if len(texts) == 1:
            return texts[0]
        return f'Train: {texts[0]}\nInfer: {texts[1].partition(": ")[2]}'


class GuardedViewControllerFactory(ReconstructorViewControllerFactory):
    """Shows a message in place of a panel that cannot be built; without it, the host could not start its window."""

    def __init__(self, factory: ReconstructorViewControllerFactory) -> None:
        super().__init__()
        self._factory = factory

    @property
    def name(self) -> str:
        """Name of the guarded factory."""
        return self._factory.name

    def connect_window(self, window: HostWindow) -> None:
        """Pass the window on, where the guarded factory uses it."""
        if isinstance(self._factory, WindowAware):
            self._factory.connect_window(window)

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
