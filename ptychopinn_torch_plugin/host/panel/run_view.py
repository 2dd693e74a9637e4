"""What the window shows of a run: losses in the host's plot, words in its progress bar, and a dialog after a failure.

The host itself plots the losses of a product only, which has none before the run has ended. A training has no product
in the host, so the object that its network reconstructs is drawn beside the losses.
"""

from __future__ import annotations

import logging
import traceback
from typing import TYPE_CHECKING, Final

from matplotlib.gridspec import GridSpec
from matplotlib.ticker import MaxNLocator, NullFormatter, ScalarFormatter
from ptychodus.api.observer import Observable, Observer
from PyQt5.QtCore import Qt, QTimer
from PyQt5.QtWidgets import QMessageBox, QWidget

from ...estimate import ScanSize, device_of, raw_seconds
from ...run_progress import RunProgress
from ...training.preview import grey_picture
from .selection import SelectedScan

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from ptychodus.model.product.item import ProductRepositoryItem

    from ..contract import HostWindow
    from ..library import PtychoPINNPyTorchLibrary
    from ..runs import WorkerReconstructor

logger = logging.getLogger(__name__)

REMEMBERED: Final = 100
"""Number of runs whose curves are kept for the plot."""


class RunView(Observer):
    """Shows the runs of one library in the host's window."""

    def __init__(self, library: PtychoPINNPyTorchLibrary, window: HostWindow, selected: SelectedScan) -> None:
        super().__init__()
        self._library = library
        self._selected = selected
        self._size: ScanSize | None = None
        self._window = window
        self._runs: dict[int, tuple[ProductRepositoryItem, RunProgress]] = {}
        self._completed = window.task_monitor.get_completed_runs()
        self._pictures: list[Axes] = []
        self._begun: RunProgress | None = None
        self._selection: list[ProductRepositoryItem] = []
        self._at_begin: list[ProductRepositoryItem] = []
        self.dialog: QMessageBox | None = None
        """The dialog of the last failure."""
        window.task_monitor.add_observer(self)
        window.product_box.currentIndexChanged.connect(lambda _index: self._follow_selection())
        self._follow_selection()

    def _update(self, observable: Observable) -> None:
        """Follow the run: called by the host's monitor in the window's thread."""
        monitor, reconstructor = self._window.task_monitor, self._running()
        completed = monitor.get_completed_runs()
        is_over, self._completed = completed != self._completed, completed
        if reconstructor is None:
            return
        progress = reconstructor.progress
        if progress is not self._begun:
            self._begun, self._at_begin = progress, list(self._selection)
        if progress.kind is not None:
            self._remember(progress)
            self._show_progress(progress)
        if is_over:
            error = monitor.get_last_error()
            if isinstance(error, Exception):
                self._show_failure(error)
                if progress.makes_product:
                    self._select_source()
            self._calibrate(progress)
        # Later, because the host redraws its own plot for the product that was yielded at the same time.
        QTimer.singleShot(0, self._redraw)

    def _follow_selection(self) -> None:
        """Remember the last two products that were selected, and draw the curves of the present one."""
        index = self._window.product_box.currentIndex()
        if 0 <= index < len(self._window.products):
            item = self._window.products[index]
            if not self._selection or self._selection[-1] is not item:
                self._selection = [*self._selection[-1:], item]
        self._plot_selected()

    def _select_source(self) -> None:
        """Select the product that a failed run was to reconstruct again, in place of its unfinished copy.

        The host makes a copy for the result and selects it when the run begins; the next training would use it.
        """
        if len(self._at_begin) < 2 or self._selection[-1] is not self._at_begin[-1]:
            return
        source, unfinished = self._at_begin
        items = [self._window.products[index] for index in range(len(self._window.products))]
        if source in items and items[-1] is unfinished:
            self._window.product_box.setCurrentIndex(items.index(source))
            logger.info(
                'The product "%s" is selected again; "%s" is not finished and can be removed.',
                source.get_name(),
                unfinished.get_name(),
            )

    def _calibrate(self, progress: RunProgress) -> None:
        """Correct the next estimates by a run that has reached its goal."""
        work, config, seconds = progress.kind, progress.config, progress.finished_after
        if work is None or config is None or seconds is None or self._size is None:
            return
        device = device_of(work, config)
        self._library.calibration.add(work, device, raw_seconds(work, self._size, config, device), seconds)
        self._selected.notify()

    def _running(self) -> WorkerReconstructor | None:
        """Return the reconstructor of this library that runs, or ran last if none does."""
        return self._library.newest

    def _remember(self, progress: RunProgress) -> None:
        """Keep the curves of a run with the product that is selected while it begins."""
        if any(known is progress for _, known in self._runs.values()):
            return
        self._size = self._selected.size()
        index = self._window.product_box.currentIndex()
        if 0 <= index < len(self._window.products):
            item = self._window.products[index]
            self._runs.pop(id(item), None)
            self._runs[id(item)] = item, progress
        while len(self._runs) > REMEMBERED:
            self._runs.pop(next(iter(self._runs)))

    def _show_progress(self, progress: RunProgress) -> None:
        bar = self._window.status_view.progress_bar
        bar.setTextVisible(True)
        bar.setAlignment(Qt.AlignmentFlag.AlignCenter)
        bar.setFormat(f'{progress.text()} (%p %)')

    def _redraw(self) -> None:
        """Draw the curves of the present run, or of that of the selected product."""
        reconstructor = self._running()
        if reconstructor is not None and self._window.task_monitor.is_processing:
            self._plot(reconstructor.progress, reconstructor.progress.text())
        else:
            self._plot_selected()

    def _plot_selected(self) -> None:
        """Draw the curves of the run that belongs to the selected product, after the host has drawn its own."""
        index = self._window.product_box.currentIndex()
        if not 0 <= index < len(self._window.products) or self._window.task_monitor.is_processing:
            return
        item = self._window.products[index]
        known = self._runs.get(id(item))
        if known is not None and known[0] is item:
            self._plot(known[1], item.get_name())
        else:
            self._remove_object()

    def _plot(self, progress: RunProgress, title: str) -> None:
        if not progress.training:
            self._remove_object()
            return
        axes, canvas = self._window.status_view.axes, self._window.status_view.figure_canvas
        axes.clear()
        axes.set_title(title)
        axes.set_xlabel('Epoch')
        axes.set_ylabel(progress.loss_name)
        name = 'training' if progress.kind == 'train' else 'refinement'
        curves = [(name, progress.training), ('validation (held-out positions)', progress.validation)]
        for label, points in curves:
            if points:
                axes.semilogy(*zip(*points, strict=True), '.-', label=label, linewidth=2.0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        for axis_formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            axis_formatter(ScalarFormatter())
        if len(axes.yaxis.get_minorticklocs()) > len(axes.yaxis.get_majorticklocs()) + 8:
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(visible=True)
        axes.legend()
        self._draw_object(progress)
        canvas.draw()  # type: ignore[no-untyped-call] # matplotlib's own

    def _remove_object(self) -> None:
        """Leave the whole plot to the losses."""
        if self._pictures:
            self._draw_object(None)
            self._window.status_view.figure_canvas.draw()  # type: ignore[no-untyped-call] # matplotlib's own

    def _draw_object(self, progress: RunProgress | None) -> None:
        """Draw amplitude and phase of the object of a training beside the losses; nothing for None."""
        view = self._window.status_view
        for picture in self._pictures:
            picture.remove()
        self._pictures = []
        if progress is None or progress.preview is None:
            view.axes.set_subplotspec(GridSpec(1, 1, figure=view.figure)[0, 0])
            return
        view.axes.set_subplotspec(GridSpec(2, 3, figure=view.figure)[:, :2])
        # The title above the losses needs the whole width.
        grid = GridSpec(2, 3, figure=view.figure, hspace=0.3, top=0.8)
        grey = grey_picture(progress.preview)
        width = progress.preview.shape[1]
        for row, (name, image) in enumerate((('Amplitude', grey[:, :width]), ('Phase', grey[:, width:]))):
            picture = view.figure.add_subplot(grid[row, 2])
            picture.imshow(image, cmap='gray', vmin=0, vmax=255, interpolation='nearest')
            picture.set_title(f'{name}, epoch {progress.preview_epoch}')
            picture.set_axis_off()
            self._pictures.append(picture)

    def _show_failure(self, error: Exception) -> None:
        """Show the sentence of the error in a dialog that does not block the window."""
        parent: QWidget = self._window.status_view
        dialog = QMessageBox(parent)
        dialog.setIcon(QMessageBox.Icon.Warning)
        dialog.setWindowTitle('PtychoPINN (PyTorch)')
        dialog.setText('The run did not finish.')
        dialog.setInformativeText(str(error) or type(error).__name__)
        dialog.setDetailedText(''.join(traceback.format_exception(error)))
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        dialog.destroyed.connect(self._forget_dialog)
        self.dialog = dialog
        dialog.open()

    def _forget_dialog(self) -> None:
        self.dialog = None
