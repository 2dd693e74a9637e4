"""The product that is selected in the window, as far as an estimate and the comparison with a model need it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import numpy as np

from ...estimate import ScanSize
from ...storage.model_facts import ScanFacts

if TYPE_CHECKING:
    from ptychodus.model.product.item import ProductRepositoryItem

    from ..contract import HostWindow


SAMPLE: Final = 64
"""Patterns from which the mean number of photons is computed."""


class SelectedScan:
    """Follows the selection of a product."""

    def __init__(self, window: HostWindow) -> None:
        self._window = window
        self._listeners: list[Callable[[], None]] = []
        self._size: ScanSize | None = None
        self._photons: float | None = None
        box = window.product_box
        box.currentIndexChanged.connect(lambda _index: self._change())
        box.model().dataChanged.connect(lambda *_: self._change())
        self._change()

    def add_listener(self, function: Callable[[], None]) -> None:
        """Call ``function`` whenever another product is selected, or the selected one has changed."""
        self._listeners.append(function)
        function()

    @property
    def item(self) -> ProductRepositoryItem | None:
        """The selected product, complete and with patterns; None where there is none."""
        index = self._window.product_box.currentIndex()
        if not 0 <= index < len(self._window.products):
            return None
        item = self._window.products[index]
        return None if item.is_pending() or item.is_failed() or item.get_dataset() is None else item

    def size(self) -> ScanSize | None:
        """Return the size of the selected scan; None where no product with patterns is selected."""
        return self._size

    def scan_facts(self) -> ScanFacts | None:
        """Return what a model is compared with; None where no product with patterns is selected."""
        item = self.item
        dataset = None if item is None else item.get_dataset()
        if item is None or dataset is None or self._size is None:
            return None
        if self._photons is None:
            data = dataset.get_assembled_data()
            patterns = data.get_patterns()
            sample = patterns[:: max(1, len(patterns) // SAMPLE)].astype(np.float64)
            bad_pixels = data.get_bad_pixels()
            if bad_pixels is not None:
                sample[:, bad_pixels] = 0.0
            self._photons = float(np.nan_to_num(sample).sum() / len(sample))
        probe = np.asarray(item.get_probe_item().get_probes().get_probe_no_opr().get_array())
        pixel = item.get_object_item().get_object().get_pixel_geometry()
        pixel_m = float(pixel.height_m), float(pixel.width_m)
        return ScanFacts(self._photons, probe, pixel_m if min(pixel_m) > 0 else None)

    def _change(self) -> None:
        size = _size_of(self.item)
        if size == self._size:
            return
        self._size = size
        self._photons = None
        self.notify()

    def notify(self) -> None:
        """Call the listeners."""
        for function in self._listeners:
            function()


def _size_of(item: ProductRepositoryItem | None) -> ScanSize | None:
    if item is None:
        return None
    dataset = item.get_dataset()
    probes, object_ = item.get_probe_item().get_probes(), item.get_object_item().get_object()
    if dataset is None or not probes.height_px:
        return None
    extent = dataset.get_processed_image_extent()
    patterns = dataset.get_assembled_data().get_patterns()
    return ScanSize(
        patterns=len(patterns),
        height=extent.height_px,
        width=extent.width_px,
        modes=probes.num_incoherent_modes,
        pattern_bytes=patterns.dtype.itemsize,
        object_pixels=object_.height_px * object_.width_px,
    )
