"""Make the pictures of the window and of a report in ``docs/images``: ``make pictures``.

A scan is simulated, and the real window trains on it and reconstructs it by its own buttons, without a screen, at
1280 x 800 and 1920 x 1080 pixels; Chromium draws the report. Takes four minutes on two idle cores. Pictures
that are larger than they should be, because the window has no room for its contents, are named.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib

os.environ['QT_QPA_PLATFORM'] = 'offscreen'
# Qt has no fonts of its own, and without a screen it does not look for those of the system.
os.environ['QT_QPA_FONTDIR'] = str(Path(matplotlib.get_data_path(), 'fonts', 'ttf'))

from ptychopinn_torch_plugin.demo.simulate import ScanPlan, simulate_scan
from tests.end_to_end.window import PINN, PtychodusWindow, open_window

IMAGES = Path(__file__).parent / 'images'
SCAN = ScanPlan(rows=14, columns=14, sample='star')
FAINT_SCAN = ScanPlan(rows=8, columns=8, sample='star', photons=1e4)
REFINE = 'ptychopinn (pytorch)_refine'
SMALL, LARGE = (1280, 800), (1920, 1080)
SECONDS = 900.0
EPOCHS = 10


def main() -> None:
    """Write the pictures."""
    from PyQt5.QtGui import QFont
    from PyQt5.QtWidgets import QApplication

    IMAGES.mkdir(exist_ok=True)
    application = QApplication(['ptychodus'])
    application.setFont(QFont('DejaVu Sans', 9))
    with tempfile.TemporaryDirectory(prefix='star-') as name, open_window() as window:
        folder = Path(name)
        simulate_scan(folder / 'scan', SCAN)
        simulate_scan(folder / 'faint', FAINT_SCAN)
        (folder / 'training').mkdir()
        window.view.setWindowTitle('Ptychodus')
        window.set_values({'Execution': {'report_folder': folder / 'reports'}})
        window.view.show()
        scan = window.load_scan(folder / 'scan')
        _panels(window)
        _check_data(window)
        _refinement(window)
        _report(folder / 'reports')
        window.product_box().setCurrentIndex(scan)
        _training(window, folder / 'training')
        _inference(window)
        _foreign_model(window, folder / 'faint')
        window.product_box().setCurrentIndex(scan)


def _panels(window: PtychodusWindow) -> None:
    """The panels, folded and open, and a preset."""
    window.choose_algorithm(REFINE)
    _grab(window, 'panel-refine', SMALL)
    window.choose_algorithm(PINN)
    _grab(window, 'panel', SMALL)
    _grab(window, 'panel-large', LARGE)
    page = _page(window)
    page.preset_box.setCurrentIndex(page.preset_box.findData('faint'))
    page.preset_box.activated.emit(page.preset_box.currentIndex())
    with _open_folds(window, 'Refinement'):
        _grab(window, 'preset-faint', LARGE)
    page.preset_box.setCurrentIndex(page.preset_box.findData('balanced'))
    page.preset_box.activated.emit(page.preset_box.currentIndex())
    with _open_folds(window, 'Data', 'Probe', 'Model', 'Training', 'Refinement', 'Hardware'):
        _grab_page(window, 'panel-open')


def _check_data(window: PtychodusWindow) -> None:
    box = _page(window).inspection_box
    _page(window).check_button.click()
    window.wait(lambda: not box.is_busy, 'the inspection has ended', SECONDS)
    window.settle()
    box.grab().save(str(IMAGES / 'check-data.png'))
    box.close_button.click()
    window.settle()


def _refinement(window: PtychodusWindow) -> None:
    window.choose_algorithm(REFINE)
    with window.finished_run(SECONDS):
        window.actions.reconstruct_button.click()
    window.monitor.raise_if_failed()
    _grab(window, 'refined', SMALL)
    window.choose_algorithm(PINN)


def _report(folder: Path) -> None:
    """The top of the report of the refinement, as a browser shows it."""
    (report,) = folder.glob('*.html')
    browser = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
    if browser is None:
        raise SystemExit('The picture of the report needs Chromium: install it.')
    command = [browser, '--headless', '--no-sandbox', '--disable-gpu', '--hide-scrollbars', '--window-size=1280,1600']
    command += [f'--screenshot={IMAGES / "report.png"}', report.as_uri()]
    subprocess.run(command, check=True, timeout=120, capture_output=True)


def _training(window: PtychodusWindow, folder: Path) -> None:
    window.set_values({'Training': {'epochs': EPOCHS}})
    with window.finished_run(SECONDS):
        window.press_train(folder)
        window.wait(lambda: f'Epoch {3 * EPOCHS // 10} of' in window.log_text(), 'a third of the training', SECONDS)
        window.settle()
        _grab(window, 'training', SMALL)
    window.monitor.raise_if_failed()
    window.wait(lambda: not _page(window).model_box.picture.isHidden(), 'the model is shown')
    _grab(window, 'trained', SMALL)


def _inference(window: PtychodusWindow) -> None:
    with window.finished_run(SECONDS):
        window.press_infer()
    window.monitor.raise_if_failed()
    _grab(window, 'window', LARGE)


def _foreign_model(window: PtychodusWindow, scan: Path) -> None:
    """The model of one scan while another one, much fainter, is selected."""
    window.load_scan(scan)
    window.wait(lambda: not _page(window).model_box.warning.isHidden(), 'the warning is shown')
    _grab(window, 'foreign-model', SMALL)


def _page(window: PtychodusWindow) -> Any:  # noqa: ANN401 - the panel on display
    return window.processing._stacked_widget.currentWidget()


@contextmanager
def _open_folds(window: PtychodusWindow, *titles: str) -> Iterator[None]:
    from ptychopinn_torch_plugin.host.panel.fold import Fold

    folds = [fold for fold in _page(window).findChildren(Fold) if fold.title in titles]
    for fold in folds:
        fold.button.setChecked(True)
    window.settle()
    yield
    for fold in folds:
        fold.button.setChecked(False)


def _grab(window: PtychodusWindow, name: str, size: tuple[int, int]) -> None:
    """Write a picture of the whole window."""
    from PyQt5.QtGui import QTextCursor

    window.view.resize(*size)
    window.status.text_edit.moveCursor(QTextCursor.MoveOperation.End)
    window.settle()
    picture = window.view.grab()
    if (picture.width(), picture.height()) != size:
        print(f'{name}.png: {picture.width()} x {picture.height()} instead of {size[0]} x {size[1]}')
    picture.save(str(IMAGES / f'{name}.png'))


def _grab_page(window: PtychodusWindow, name: str) -> None:
    """Write a picture of the whole panel, beyond what the window has room for."""
    page = _page(window)
    window.settle()
    page.resize(page.width(), page.sizeHint().height())
    page.grab().save(str(IMAGES / f'{name}.png'))


if __name__ == '__main__':
    main()
