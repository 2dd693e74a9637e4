"""The loaded model in the panel: what it is, and where today's scan differs from what it was trained on."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
from PyQt5.QtCore import Qt
from PyQt5.QtGui import QImage, QPixmap
from PyQt5.QtWidgets import QGroupBox, QHBoxLayout, QLabel, QVBoxLayout

from ...storage.model_facts import ModelFacts, differences, in_words, read_facts

if TYPE_CHECKING:
    from .selection import SelectedScan

THUMBNAIL_PX: Final = 72
LINE_CHARS: Final = 60


class ModelBox(QGroupBox):
    """Name, date, scans, network and losses of a model, a picture of its probe, and warnings."""

    def __init__(self) -> None:
        super().__init__('Loaded model')
        self.picture = QLabel()
        self.text = QLabel('No model is loaded: train one, or choose Load Model in the menu beside Train.')
        self.warning = QLabel()
        for label in (self.text, self.warning):
            label.setWordWrap(True)
            label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.warning.setStyleSheet('background: #fff3cd; color: #5f4b00; padding: 4px;')
        row = QHBoxLayout()
        row.addWidget(self.picture)
        row.addWidget(self.text, 1)
        layout = QVBoxLayout(self)
        layout.addLayout(row)
        layout.addWidget(self.warning)
        self.picture.hide()
        self.warning.hide()
        self._shown: tuple[Path, int] | None = None
        self._facts: ModelFacts | None = None

    def show_model(self, file: Path | None, selected: SelectedScan) -> None:
        """Show the model in ``file``, read again only if the file has changed, compared with the selected scan."""
        if file is None or not file.is_file():
            return
        state = file, file.stat().st_mtime_ns
        if state != self._shown:
            self._shown, self._facts = state, read_facts(file)
            self._show_facts(file, self._facts)
        scan = selected.scan_facts()
        warnings = [] if self._facts is None or scan is None else differences(self._facts, scan)
        self.warning.setText('\n'.join(warnings))
        self.warning.setVisible(bool(warnings))

    def _show_facts(self, file: Path, facts: ModelFacts) -> None:
        when = time.strftime('%Y-%m-%d %H:%M', time.localtime(file.stat().st_mtime))
        header, best = facts.header, facts.header.best
        scans, model, (height, width) = ', '.join(header.scans), header.config.model, facts.probe.shape[1:]
        pixel = '' if header.object_pixel_m is None else f', {_nanometres(header.object_pixel_m)} per pixel'
        lines = [
            file.parent.name + '/' + file.name,
            f'of {when}, trained on {scans if len(scans) <= LINE_CHARS else scans[:LINE_CHARS] + " ..."}',
            f'{height} x {width} pixels{pixel}, {in_words(header.photons_per_frame)} photons per pattern',
            f'{model.generator}, {model.steps} steps, width {model.width}; {len(header.losses)} epochs',
        ]
        if best is not None:
            held_out = '' if best.validation is None else f', {best.validation:.3f} on held-out positions'
            lines.append(f'loss {best.training:.3f}{held_out} (epoch {best.epoch}, the best)')
        self.text.setText('\n'.join(lines))
        self.text.setToolTip(str(file))
        self.picture.setPixmap(_pixmap(np.abs(facts.probe[0])))
        self.picture.setToolTip('Amplitude of the probe in the model (first mode).')
        self.picture.show()


def _nanometres(pixel_m: tuple[float, float]) -> str:
    height, width = (f'{side * 1e9:.3g}' for side in pixel_m)
    return f'{height} nm' if height == width else f'{height} x {width} nm'


def _pixmap(values: npt.NDArray[np.floating]) -> QPixmap:
    """Draw non-negative ``values`` ``(h, w)`` in grey, white at their maximum."""
    grey = np.ascontiguousarray(255 * values / max(float(values.max()), 1e-30), dtype=np.uint8)
    height, width = grey.shape
    image = QImage(grey.tobytes(), width, height, width, QImage.Format.Format_Grayscale8).copy()
    return QPixmap.fromImage(image).scaled(
        THUMBNAIL_PX, THUMBNAIL_PX, Qt.AspectRatioMode.KeepAspectRatio, Qt.TransformationMode.SmoothTransformation
    )
