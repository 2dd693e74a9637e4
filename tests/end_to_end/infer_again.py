"""What a user does the next day: open the window, load the scan and the saved model, press Infer."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from .window import PINN, QUICK, open_window


def main(scan: Path, model_file: Path, result: Path) -> None:
    """Write the object, and what the curve shows, to ``result`` (NPZ)."""
    with open_window() as window:
        window.set_values(QUICK)
        window.choose_algorithm(PINN)
        window.load_scan(scan)
        window.press_load_model(model_file)
        with window.finished_run():
            index = window.press_infer()
        window.monitor.raise_if_failed()
        assert not window.dialogs, window.dialogs
        product = window.products[index].get_product()
        np.savez(
            result,
            object_array=product.object_.get_array(),
            probe=product.probes.get_array(),
            epochs=window.plotted_epochs(),
            losses=[loss.value for loss in product.losses],
        )


if __name__ == '__main__':
    main(*(Path(argument) for argument in sys.argv[1:]))
