"""Output folders of the host: checked before a run, and replaced by another one where the product cannot be written."""

from __future__ import annotations

import logging
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import OutputError

if TYPE_CHECKING:
    from ptychodus.api.product import Product

logger = logging.getLogger(__name__)


def check_writable(folder: Path | None) -> None:
    """Make ``folder`` if it is absent, and write an empty file into it for a moment; None needs no check.

    Raises:
        OutputError: that is not possible.
    """
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(
            f'Nothing can be written into the output folder {folder} ({error.strerror}): choose another folder.'
        ) from error


def keep_elsewhere(product: Product, reason: OSError) -> None:
    """Write a product that the host could not write into the working, home or temporary folder, and log where it is."""
    from ptychodus.api.io import save_product

    name = f'ptychopinn-product-{time.strftime("%Y%m%d-%H%M%S")}.h5'
    for folder in (Path.cwd(), Path.home(), Path(tempfile.gettempdir())):
        try:
            save_product(folder / name, product)
        except OSError as error:
            logger.debug('%s cannot be written, either: %s', folder / name, error)
        else:
            logger.error('The product could not be written (%s); it is in %s instead.', reason, folder / name)
            return
    logger.error('The product could not be written (%s), nor into the working, home or temporary folder.', reason)
