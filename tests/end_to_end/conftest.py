"""One small scan, one window and one trained model for all tests of the window."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ptychopinn_torch_plugin.demo.simulate import ScanPlan, simulate_scan

if TYPE_CHECKING:
    from .window import PtychodusWindow

WINDOW_SCAN = ScanPlan(rows=6, columns=6, step_px=4.0, pattern_shape=(32, 32), photons=1e5)


@pytest.fixture(scope='module')
def window_scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Workflow folder with 36 patterns of 32 x 32 pixels."""
    folder = tmp_path_factory.mktemp('scan')
    simulate_scan(folder, WINDOW_SCAN)
    return folder


@pytest.fixture(scope='module')
def real_window() -> Iterator[PtychodusWindow]:
    """The window of the application, open on the page with the algorithms."""
    pytest.importorskip('PyQt5')
    from .window import open_window

    with open_window() as window:
        yield window


@dataclass(frozen=True)
class TrainedWindow:
    """A window in which a short training was run by its Train button."""

    window: PtychodusWindow
    product_index: int
    folder: Path
    """The folder chosen for the training; it was empty before."""
    log: str
    was_infer_enabled: bool
    """Whether Infer could be pressed before the training."""


@pytest.fixture(scope='module')
def trained_window(
    real_window: PtychodusWindow, window_scan: Path, tmp_path_factory: pytest.TempPathFactory
) -> TrainedWindow:
    """Train PINN once by the button."""
    from .window import PINN, QUICK, SUPERVISED

    window = real_window
    folder = tmp_path_factory.mktemp('chosen')
    index = window.load_scan(window_scan)
    window.set_values(QUICK)
    window.choose_algorithm(SUPERVISED)
    window.choose_algorithm(PINN)
    window.clear_log()
    was_infer_enabled = window.actions.reconstruct_button.isEnabled()
    with window.finished_run():
        window.press_train(folder)
    return TrainedWindow(window, index, folder, window.log_text(), was_infer_enabled)
