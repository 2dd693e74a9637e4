"""The real Ptychodus window, driven by its own widgets; needs a platform plug-in of Qt, ``offscreen`` will do."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from unittest.mock import patch

import numpy as np
import psutil

os.environ.setdefault('QT_QPA_PLATFORM', 'offscreen')

from ptychodus.controller import ControllerCore
from ptychodus.controller.processing import core as processing
from ptychodus.model import ModelCore
from ptychodus.view import ViewCore
from PyQt5.QtWidgets import QAction, QApplication, QComboBox

PINN: Final = 'ptychopinn (pytorch)_pinn'
SUPERVISED: Final = 'ptychopinn (pytorch)_supervised'

QUICK: Final[dict[str, dict[str, object]]] = {
    'Data': {'group_size': 16, 'neighbor_count': 20},
    'Model': {'steps': 4, 'width': 4, 'levels': 2},
    'Training': {'epochs': 3, 'threads': 1},
    'Refinement': {'refine_epochs': 2},
    'Inference': {'steps': 8, 'threads': 1},
}
"""Settings with which a scan of 36 patterns of 32 x 32 pixels takes a second, the start of the worker aside."""

_KEPT: list[PtychodusWindow] = []


class PtychodusWindow:
    """The host's window with the few things a user does to it; nothing below the widgets is replaced."""

    def __init__(self, application: QApplication, model: ModelCore) -> None:
        self._application = application
        self.model = model
        self.view = ViewCore()
        self.controller = ControllerCore(model, self.view)
        self.processing = self.controller._processing_controller
        self.actions = self.processing._actions_view
        self.status = self.view.processing_status_view
        self.products = model.product_core.product_repository
        self.monitor = model.processing_core.processing_api.task_monitor
        self.dialogs: list[tuple[str, Exception]] = []
        """What would have been shown in an error dialog, which waits for a click."""

    def wait(self, condition: Callable[[], bool], what: str, seconds: float = 40.0) -> float:
        """Keep the window alive until ``condition`` holds, and return the seconds that took."""
        start = time.monotonic()
        while not condition():
            assert time.monotonic() < start + seconds, f'{what}: not within {seconds:g} s\n{self.log_text()}'
            self._application.processEvents()
            self.model.run_tasks()
            time.sleep(0.01)
        return time.monotonic() - start

    def show_processing(self) -> None:
        """Turn to the page with the algorithms."""
        self.view.processing_action.trigger()

    def choose_algorithm(self, key: str) -> None:
        combo_box = self.processing._algorithm_view_controller.get_widget()
        index = combo_box.findText(key)
        assert index >= 0, f'{key} is not among the algorithms'
        combo_box.setCurrentIndex(index)
        combo_box.textActivated.emit(key)

    def set_values(self, values: dict[str, dict[str, object]]) -> None:
        """Set parameters of our settings groups, for example ``{'Training': {'epochs': 3}}``."""
        for section, parameters in values.items():
            group = self.model.settings_registry[f'PtychoPINNPyTorch{section}'].parameters()
            for name, value in parameters.items():
                group[name].set_value_from_string(str(value))

    def load_scan(self, folder: Path) -> int:
        """Load ``diffraction.h5`` and ``product.h5``, choose the product and return its index."""
        data = self.model.workflow_api.load_assembled_diffraction_data(folder / 'diffraction.h5')
        index = len(self.products)
        self.model.workflow_api.load_product(folder / 'product.h5', diffraction=data)
        self.wait(lambda: self.product_box().count() > index, 'the product appears')
        self.product_box().setCurrentIndex(index)
        self.wait(self.actions.train_button.isEnabled, 'the product is ready')
        return index

    def product_box(self) -> QComboBox:
        """The box in which the product is chosen."""
        return self.processing._product_view_controller.get_widget()

    def press_train(self, folder: Path) -> None:
        """Press Train and answer the question for a folder."""
        with patch.object(self.processing._file_dialog_factory, 'get_existing_directory_path', return_value=folder):
            self.actions.train_button.click()

    def press_infer(self) -> int:
        """Press Infer and return the index of the new product."""
        assert self.actions.reconstruct_button.text() == 'Infer'
        assert self.actions.reconstruct_button.isEnabled()
        index = len(self.products)
        self.actions.reconstruct_button.click()
        assert len(self.products) == index + 1
        return index

    def press_load_model(self, file: Path) -> None:
        """Choose Load Model in the menu beside Infer, and answer the question for a file."""
        action = self.menu_action('Load Model...')
        assert action.isVisible()
        with patch.object(self.processing._file_dialog_factory, 'get_open_file_path', return_value=(file, '')):
            action.trigger()

    def press_stop(self) -> float:
        """Press Stop while a run is under way, and return the seconds until the run is over."""
        runs = self.monitor.get_completed_runs()
        assert self.monitor.is_processing
        assert not self.status.stop_button.isHidden()
        self.status.stop_button.click()
        return self.wait(lambda: self.monitor.get_completed_runs() > runs, 'the run stops', 30.0)

    def menu_action(self, text: str) -> QAction:
        (action,) = (item for item in self.actions.actions_menu.actions() if item.text() == text)
        return action

    @contextmanager
    def finished_run(self, seconds: float = 40.0) -> Iterator[None]:
        """Leave the block when the run started in it is over and everything it brought is on display."""
        runs = self.monitor.get_completed_runs()
        yield
        self.wait(lambda: self.monitor.get_completed_runs() > runs, 'the run ends', seconds)
        self.settle()

    def settle(self) -> None:
        """Let the window show what has been handed to it."""
        for _ in range(3):
            self.model.run_tasks()
            self._application.processEvents()

    def log_text(self) -> str:
        """Contents of the text box below the plot."""
        return self.status.text_edit.toPlainText()

    def clear_log(self) -> None:
        self.settle()
        self.status.text_edit.clear()

    def plotted_epochs(self) -> list[float]:
        """Epochs of the curve on display."""
        return [float(x) for line in self.status.axes.get_lines() for x in np.asarray(line.get_xdata())]

    def show_exception(self, actor: str, exception: Exception) -> None:
        """Stand in for the host's error dialog."""
        self.dialogs.append((actor, exception))


@contextmanager
def open_window() -> Iterator[PtychodusWindow]:
    """Open the window; Python never collects it, because Qt does not survive that while the next one is built."""
    application = QApplication.instance() or QApplication(['ptychodus'])
    assert isinstance(application, QApplication)
    with _log_level(logging.INFO), ModelCore(log_level=logging.INFO) as model:
        window = PtychodusWindow(application, model)
        _KEPT.append(window)
        window.show_processing()
        window.settle()
        with patch.object(processing, 'ExceptionDialog', window):
            try:
                yield window
            finally:
                window.monitor.stop_processing()  # the host waits for the end of what is under way
                window.controller._run_tasks_timer.stop()


@contextmanager
def _log_level(level: int) -> Iterator[None]:
    """Set the level of the root logger; the host leaves it alone where logging is configured already (by pytest)."""
    root = logging.getLogger()
    kept = root.level
    root.setLevel(level)
    try:
        yield
    finally:
        root.setLevel(kept)


def worker_processes() -> set[int]:
    """Process ids of this process' children, zombies included; multiprocessing's own helper stays until the end."""
    return {
        child.pid
        for child in psutil.Process().children(recursive=True)
        if child.status() == psutil.STATUS_ZOMBIE or 'resource_tracker' not in ' '.join(child.cmdline())
    }
