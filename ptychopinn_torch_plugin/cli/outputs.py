"""Output of a reconstruction: a product of Ptychodus, or arrays."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..data.finite_check import refuse_non_finite
from ..data.io.output import write_arrays, write_product
from ..errors import ConfigurationError, OutputError
from ..types import Reconstruction
from .inputs import NPZ_SUFFIX, PRODUCT_SUFFIXES, Loaded

PRODUCT_NAME = 'product.h5'
ARRAYS_NAME = 'reconstruction.npz'


def resolve_output(output: Path, *, has_product: bool) -> Path:
    """Return the file that a reconstruction is written to.

    Args:
        output: a file ``.h5`` or ``.npz``, or a folder (no suffix of a file): then ``product.h5`` or, of a training
            file, ``reconstruction.npz`` in it.
        has_product: whether the scan has a product; only then the reconstruction can be written as one.

    Raises:
        ConfigurationError: another suffix, or a product is asked for where the scan has none.
        OutputError: the user may not write there.
    """
    if output.is_dir() or not output.suffix or output.suffix[1].isdigit():  # as in the name scan_0.5um
        output = output / (PRODUCT_NAME if has_product else ARRAYS_NAME)
    if output.suffix in PRODUCT_SUFFIXES and not has_product:
        raise ConfigurationError(
            f'-o {output}: a training file has no product to write the reconstruction into: give a .npz file, or '
            'turn the training file into a workflow folder first (ptychopinn-torch convert).'
        )
    if output.suffix not in (NPZ_SUFFIX, *PRODUCT_SUFFIXES):
        raise ConfigurationError(f'-o {output}: write a product (.h5), arrays (.npz), or into a folder (no suffix).')
    refuse_unwritable(output)
    return output


def refuse_unwritable(output: Path) -> None:
    """Raise :class:`OutputError` if the user may not write the file ``output``."""
    folder = next(parent for parent in output.absolute().parents if parent.exists())
    if not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        raise OutputError(f'-o {output}: {folder} is not a folder that you may write into. Choose another output.')


def write_reconstruction(output: Path, loaded: Loaded, reconstruction: Reconstruction) -> None:
    """Write ``reconstruction`` to ``output`` (see :func:`resolve_output`), whole or not at all.

    An NPZ file holds ``object`` (h, w) complex64, ``coverage`` (h, w) bool, ``probe`` (modes, H, W) complex64 in
    photons, ``positions`` (n, 2) as (y, x) in object pixels, and ``losses`` (epochs,).

    Raises:
        ReconstructionError: something in it is not finite; nothing is written.
        OutputError: the file cannot be written.
    """
    refuse_non_finite(reconstruction, loaded.scan.name)
    if output.suffix in PRODUCT_SUFFIXES and loaded.parameters is not None:
        from ..data.io.product import product_from_reconstruction

        write_product(output, product_from_reconstruction(loaded.parameters, reconstruction))
        return
    arrays: dict[str, npt.ArrayLike] = {
        'object': reconstruction.object_array,
        'probe': reconstruction.probe,
        'coverage': reconstruction.coverage,
        'positions': reconstruction.positions,
        'losses': np.array([record.training for record in reconstruction.losses]),
    }
    write_arrays(output, arrays)
