"""The button "Check and find geometry" of the panels: a quick check at once, then the inspection in a worker.

The findings are shown in the panel, with one check box for each proposal. What the user accepts is written by another
worker and loaded as new patterns and a new product: those that were inspected do not change.
"""

from __future__ import annotations

import html
import logging
import tempfile
import threading
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from PyQt5.QtCore import Qt, pyqtSignal
from PyQt5.QtWidgets import QApplication, QCheckBox, QGroupBox, QHBoxLayout, QLabel, QPushButton, QVBoxLayout

from ...errors import ConfigurationError, PtychoPINNError
from ..contract import HostWindow
from ..data_check import check_data
from ..inspection_job import ScanInspection, apply_in_worker, inspect_in_worker
from ..settings import PtychoPINNSettings

if TYPE_CHECKING:
    from ptychodus.api.reconstruct import ReconstructInput

    from ...worker.messages import Message

logger = logging.getLogger(__name__)

NO_PRODUCT: Final = 'No product is selected: load patterns and a product first.'
COLOURS: Final = {'good': '#2e7d32', 'notice': '#8a6d00', 'problem': '#b71c1c'}
"""Colours of the findings by their status."""
JOIN_S: Final = 10.0
"""Seconds in which a worker that is stopped ends."""

Work = Generator['Message', None, Any]


class InspectionBox(QGroupBox):
    """Findings and proposals of the selected product; hidden until the first check."""

    _ended = pyqtSignal(object, object)
    """Result and error of a worker; emitted by the thread that waits for it."""

    def __init__(self, settings: PtychoPINNSettings) -> None:
        super().__init__('Check and geometry')
        self._settings = settings
        self._window: HostWindow | None = None
        self._parameters: ReconstructInput | None = None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._then: Callable[[Any], None] = self._show_inspection
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self.inspection: ScanInspection | None = None
        """What is shown; None before an inspection has ended."""
        self.text = QLabel()
        self.text.setWordWrap(True)
        self.text.setTextFormat(Qt.TextFormat.RichText)
        self.text.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.status = QLabel()
        self.status.setWordWrap(True)
        self.boxes: dict[str, QCheckBox] = {}
        """Check boxes of the proposals by their names."""
        self._box_layout = QVBoxLayout()
        self.apply_button = QPushButton('Apply')
        self.apply_button.setToolTip(
            'Apply the marked proposals: loads righted patterns and a product as new ones. Those of now do not change.'
        )
        self.stop_button = QPushButton('Stop')
        self.close_button = QPushButton('Close')
        layout = QVBoxLayout(self)
        layout.addWidget(self.text)
        layout.addLayout(self._box_layout)
        layout.addWidget(self.status)
        row = QHBoxLayout()
        for button in (self.apply_button, self.stop_button, self.close_button):
            row.addWidget(button)
        layout.addLayout(row)
        self.apply_button.clicked.connect(self._apply)
        self.stop_button.clicked.connect(self.stop)
        self.close_button.clicked.connect(self.hide)
        self._ended.connect(self._end)
        self.hide()

    @property
    def is_busy(self) -> bool:
        """Whether a worker runs."""
        return self._thread is not None

    def check(self, window: HostWindow) -> None:
        """Check the selected product, show what a run would refuse or find unusual, and start the inspection."""
        if self.is_busy:
            return
        self._window, self.inspection, self._parameters = window, None, None
        self._show_proposals({}, ())
        self.show()
        index = window.product_box.currentIndex()
        if index < 0:
            self._show_sentences('The data cannot be reconstructed as they are.', [NO_PRODUCT])
            return
        QApplication.setOverrideCursor(Qt.CursorShape.WaitCursor)
        try:
            parameters = window.prepare_input(index)
            is_usable, findings = check_data(parameters)
        except Exception as error:  # the host refuses products in many ways; an error here would end the window
            is_usable, findings = False, [f'Ptychodus cannot prepare the data: {error}']
        finally:
            QApplication.restoreOverrideCursor()
        if not is_usable:
            self._show_sentences('The data cannot be reconstructed as they are.', findings)
            return
        self._show_sentences('The data can be reconstructed.', findings)
        try:
            config = self._settings.build_config('pinn')
        except ConfigurationError as error:
            self.status.setText(str(error))
            return
        self._parameters = parameters
        self._run(
            inspect_in_worker(parameters, config, faults=True),
            self._show_inspection,
            'Looking for orientation, defocus and faults; this takes up to a minute.',
        )

    def stop(self) -> None:
        """End the worker, if one runs."""
        self._stop.set()
        self.status.setText('Stopping.')

    def _run(self, work: Work, then: Callable[[Any], None], text: str) -> None:
        """Start a thread that receives the messages of ``work``; ``then`` gets its result in the window's thread."""
        self._then = then
        self._stop = stop = threading.Event()

        def receive() -> None:
            result, error = None, None
            try:
                with closing(work):
                    while not stop.is_set():
                        try:
                            next(work)
                        except StopIteration as end:
                            result = end.value
                            break
            except Exception as failure:  # shown in the panel
                error = failure
            self._ended.emit(result, error)

        self._thread = threading.Thread(target=receive, name='inspection', daemon=True)
        self.status.setText(text)
        self._set_busy(True)
        self._thread.start()

    def _end(self, result: object, error: object) -> None:
        """Show how the work of the thread has ended; called in the window's thread."""
        if self._thread is not None:
            self._thread.join(JOIN_S)
        self._thread = None
        self.status.clear()
        if self._stop.is_set():
            self.status.setText('Stopped.')
        elif isinstance(error, PtychoPINNError):
            self.status.setText(str(error))
        elif error is not None:
            logger.error('The inspection failed.', exc_info=error if isinstance(error, Exception) else None)
            self.status.setText(f'The inspection failed: {error}')
        else:
            self._then(result)
        self._set_busy(False)

    def _set_busy(self, is_busy: bool) -> None:
        self.stop_button.setVisible(is_busy)
        self.close_button.setVisible(not is_busy)
        self.apply_button.setVisible(not is_busy and bool(self.boxes))
        for box in self.boxes.values():
            box.setEnabled(not is_busy)

    def _show_sentences(self, title: str, sentences: list[str]) -> None:
        self.text.setText('<br>'.join([f'<b>{html.escape(title)}</b>', *(html.escape(item) for item in sentences)]))
        self.status.clear()
        self._set_busy(False)

    def _show_inspection(self, inspection: ScanInspection) -> None:
        self.inspection = inspection
        report = inspection.report
        lines = [f'<b>{html.escape(report["colour"].capitalize())}. {html.escape(report["sentence"])}</b>']
        lines += [
            f'<p style="margin: 4px 0"><span style="color: {COLOURS[item["status"]]}">'
            f'{html.escape(item["text"])}</span><br><small>{html.escape(item["evidence"])}</small></p>'
            for item in report['findings'].values()
        ]
        self.text.setText(''.join(lines))
        changes = inspection.changes
        self._show_proposals(changes['proposals'], changes['usual'])
        if not self.boxes:
            self.status.setText('Nothing is proposed.')

    def _show_proposals(self, proposals: dict[str, str], usual: list[str] | tuple[str, ...]) -> None:
        for box in self.boxes.values():
            self._box_layout.removeWidget(box)
            box.deleteLater()
        self.boxes = {}
        for name, text in proposals.items():
            box = QCheckBox(text[0].upper() + text[1:])
            box.setChecked(name in usual)
            self._box_layout.addWidget(box)
            self.boxes[name] = box

    def _apply(self) -> None:
        accepted = tuple(name for name, box in self.boxes.items() if box.isChecked())
        if self.is_busy or self.inspection is None or self._parameters is None:
            return
        if not accepted:
            self.status.setText('No proposal is marked.')
            return
        self._folder = tempfile.TemporaryDirectory(prefix='ptychopinn-inspected-')
        folder = Path(self._folder.name)
        config = self._settings.build_config('pinn')
        work = apply_in_worker(self._parameters, config, self.inspection.changes, accepted, folder)
        self._run(work, lambda _result: self._load(folder, accepted), 'Writing the righted scan.')

    def _load(self, folder: Path, accepted: tuple[str, ...]) -> None:
        """Load what the worker has written as new patterns and a new product, and select it."""
        if self._window is None:
            return
        try:
            index = self._window.load_folder(folder)
        except Exception as error:  # of the host; an error here would end the application
            self.status.setText(f'Ptychodus cannot load the righted scan: {error}')
            return
        finally:
            if self._folder is not None:
                self._folder.cleanup()
        name = self._window.products[index].get_name()
        self._show_proposals({}, ())
        self._window.product_box.setCurrentIndex(index)
        self.status.setText(f'Applied: {", ".join(accepted)}. The new product "{name}" is selected.')
