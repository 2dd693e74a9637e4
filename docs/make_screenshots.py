"""Make the pictures of the window in ``docs/images``: ``PYTHONPATH=. python docs/make_screenshots.py``.

A scan is simulated, and the real window trains on it and reconstructs it by its own buttons, without a screen. Takes
two minutes on two cores.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import matplotlib

os.environ['QT_QPA_PLATFORM'] = 'offscreen'
# Qt has no fonts of its own, and without a screen it does not look for those of the system.
os.environ['QT_QPA_FONTDIR'] = str(Path(matplotlib.get_data_path(), 'fonts', 'ttf'))

from ptychopinn_torch_plugin.demo.simulate import ScanPlan, simulate_scan
from tests.end_to_end.window import PINN, PtychodusWindow, open_window

IMAGES = Path(__file__).parent / 'images'
SCAN = ScanPlan(rows=18, columns=18, sample='star')
SECONDS = 600.0


def main() -> None:
    """Write ``panel.png`` and ``window.png``."""
    from PyQt5.QtGui import QFont
    from PyQt5.QtWidgets import QApplication

    IMAGES.mkdir(exist_ok=True)
    application = QApplication(['ptychodus'])
    application.setFont(QFont('DejaVu Sans', 10))
    with tempfile.TemporaryDirectory(prefix='star-') as name, open_window() as window:
        folder = Path(name)
        simulate_scan(folder / 'scan', SCAN)
        window.view.setWindowTitle('Ptychodus')
        window.view.resize(1500, 1100)
        window.view.show()
        window.load_scan(folder / 'scan')
        window.choose_algorithm(PINN)
        _grab_panel(window)
        _train_and_infer(window, folder / 'training')
        _grab_window(window)


def _grab_panel(window: PtychodusWindow) -> None:
    window.settle()
    window.view.processing_view.grab().save(str(IMAGES / 'panel.png'))


def _train_and_infer(window: PtychodusWindow, folder: Path) -> None:
    folder.mkdir()
    with window.finished_run(SECONDS):
        window.press_train(folder)
    window.monitor.raise_if_failed()
    with window.finished_run(SECONDS):
        window.press_infer()
    window.monitor.raise_if_failed()


def _grab_window(window: PtychodusWindow) -> None:
    from PyQt5.QtGui import QTextCursor

    window.status.text_edit.moveCursor(QTextCursor.MoveOperation.End)
    window.settle()
    window.view.grab().save(str(IMAGES / 'window.png'))


if __name__ == '__main__':
    main()
