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
    """Write ``panel.png``, ``window.png`` and ``object.png``."""
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
        _grab_object(window)


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


def _grab_object(window: PtychodusWindow) -> None:
    """Show the phase of the second object, the result."""
    window.view.object_action.trigger()
    tree = window.view.object_view.tree_view
    tree.setCurrentIndex(tree.indexBelow(tree.currentIndex()))
    window.settle()
    ribbon = window.view.object_image_view.image_ribbon
    colours = ribbon.colormap_group_box
    for box, text in ((colours.renderer_combo_box, 'Phase'), (colours.variant_combo_box, 'cyclic_grey_15_85_c0')):
        box.setCurrentText(text)
        box.textActivated.emit(text)
        window.settle()
    ribbon.data_range_group_box.auto_button.click()
    ribbon.image_tools_group_box.home_button.click()
    window.settle()
    window.view.grab().save(str(IMAGES / 'object.png'))


if __name__ == '__main__':
    main()
