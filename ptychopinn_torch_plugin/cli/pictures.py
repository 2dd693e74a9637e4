"""Pictures of a result: ``export RESULT -o NAME.tiff`` or ``NAME.png``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

import numpy as np

from ..data.io.archive import read_arrays, read_headers
from ..data.io.workflow_folder import read_product
from ..errors import InputError
from ..report.pictures import PNG_SUFFIX, TIFF_SUFFIXES, Result, picture_files, write_pictures
from .context import CommandContext
from .inputs import NPZ_SUFFIX, PRODUCT_SUFFIXES
from .outputs import ARRAYS_NAME, PRODUCT_NAME, refuse_unwritable
from .result import CommandResult

PICTURE_SUFFIXES: Final = (*TIFF_SUFFIXES, PNG_SUFFIX)


def export_pictures(parsed: argparse.Namespace, context: CommandContext) -> CommandResult:
    """Write object and probe of a result as pictures."""
    refuse_unwritable(parsed.output)
    result = read_result(parsed.source)
    context.written.watch(*picture_files(parsed.output))
    files = write_pictures(parsed.output, result)
    document = {
        'output': parsed.output,
        'kind': 'pictures',
        'files': list(files),
        'object_shape': list(result.object_array.shape),
        'probe_modes': len(result.probe),
        'object_pixel_m': result.pixel_m and list(result.pixel_m),
    }
    return CommandResult(document, f'The pictures are {", ".join(str(file) for file in files)}.')


def read_result(path: Path) -> Result:
    """Read object and probe of a product, of arrays (``reconstruction.npz``), or of a folder with one of them.

    Raises:
        InputError: there is no result, or it is damaged.
    """
    if path.is_dir():
        files = [path / name for name in (PRODUCT_NAME, ARRAYS_NAME) if (path / name).is_file()]
        if not files:
            raise InputError(f'{path} holds neither {PRODUCT_NAME} nor {ARRAYS_NAME}: give the folder of a result.')
        path = files[0]
    if path.suffix in PRODUCT_SUFFIXES:
        product = read_product(path)
        pixel = product.object_.get_pixel_geometry()
        probe = product.probes.get_probe_no_opr().get_array()
        return Result(product.object_.get_layer(0), probe, (float(pixel.height_m), float(pixel.width_m)))
    if path.suffix == NPZ_SUFFIX and {'object', 'coverage', 'probe'} <= read_headers(path).keys():
        arrays = read_arrays(path, ['object', 'coverage', 'probe'])
        shapes = arrays['object'].ndim, arrays['probe'].ndim, arrays['coverage'].shape == arrays['object'].shape
        if shapes != (2, 3, True):
            raise InputError(f'{path} is not a reconstruction of this package: its arrays have other shapes.')
        return Result(np.where(arrays['coverage'].astype(np.bool_), arrays['object'], 1), arrays['probe'])
    raise InputError(
        f'{path} is no result: give a product (.h5), the arrays of a reconstruction ({ARRAYS_NAME}), or the folder of '
        'either.'
    )
