"""The output of ``info``: the header of a file, read without torch and without the patterns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..data.io.archive import read_arrays, read_headers
from ..data.io.conversion import read_npz_geometry
from ..data.io.workflow_folder import DIFFRACTION_FILE, PRODUCT_FILE, read_diffraction_header, read_product
from ..errors import InputError, ModelFileError
from ..storage.model_facts import read_facts
from ..storage.model_file import MODEL_SUFFIX
from .inputs import HELP, NPZ_SUFFIX, PRODUCT_SUFFIXES, find_scans, is_workflow_folder
from .result import table

Document = dict[str, Any]

_UNITS: Final = {
    'photons_per_frame': 'photons_per_frame [photons]',
    'best_training_loss': 'best_training_loss [deviance per pixel]',
    'best_validation_loss': 'best_validation_loss [deviance per pixel]',
    'probe_photons': 'probe_photons [photons]',
    'training_loss': 'training_loss [deviance per pixel]',
    'validation_loss': 'validation_loss [deviance per pixel]',
    'last_loss': 'last_loss [deviance per pixel]',
    'object_pixel_m': 'object_pixel [m]',
    'detector_pixel_m': 'detector_pixel [m]',
    'photon_energy_ev': 'photon_energy [eV]',
    'detector_distance_m': 'detector_distance [m]',
}
"""Names with units, for people; the JSON document keeps the keys."""
_TEXT_ROWS: Final = 20
_SHADES: Final = ' .:-=+*#%@'
"""Characters of the text picture, from dark to bright."""
_SMALL_NPZ_KEYS: Final = ('bad_pixels', 'diff3d_quantity')


def describe(path: Path) -> tuple[Document, str]:
    """Read the header of a model file, a scan, a product, a reconstruction or a folder of scans.

    Returns:
        A JSON document with ``kind`` and ``path``, and text for people.

    Raises:
        InputError: the file is none of these, or damaged.
        ModelFileError: the model file cannot be used.
    """
    if path.is_dir() and not is_workflow_folder(path):
        try:
            scans = find_scans(path)
        except InputError:
            models = find_models(path)
            if models:
                return _compare_models(path, models)
            raise
        found = [describe(item) for item in scans]
        several: Document = {'kind': 'scans', 'path': path, 'scans': [document for document, _ in found]}
        return several, '\n\n'.join(text for _, text in found)
    document = Document(path=path) | _describer(path)(path)
    text = table(_rows(document))
    if document['kind'] == 'model':
        text += f'\n\nProbe, mode 1, amplitude:\n{_text_picture(read_facts(path).probe)}'
    return document, text


def _describer(path: Path) -> Callable[[Path], Document]:
    if path.is_dir():
        return _folder
    if not path.is_file():
        raise InputError(f'{path} does not exist: give a model file, {HELP}.')
    if path.suffix == MODEL_SUFFIX:
        return _model
    if path.suffix == NPZ_SUFFIX:
        return _archive
    if path.suffix in PRODUCT_SUFFIXES:
        return _patterns if path.name == DIFFRACTION_FILE else _product
    raise InputError(f'{path} is of no known kind: give a model file ({MODEL_SUFFIX}), {HELP}.')


def _model(path: Path) -> Document:
    facts = read_facts(path)
    header, best = facts.header, facts.header.best
    last = header.losses[-1] if header.losses else None
    return {
        'kind': 'model',
        'name': f'{path.absolute().parent.name}/{path.name}',
        'written_at': datetime.fromtimestamp(path.stat().st_mtime, UTC).astimezone().isoformat(timespec='seconds'),
        'backend': header.backend,
        'format_version': header.format_version,
        'model_type': header.config.model.model_type,
        'generator': header.config.model.generator,
        'steps': header.config.model.steps,
        'width': header.config.model.width,
        'scans': list(header.scans),
        'pattern_shape': list(facts.probe.shape[1:]),
        'object_pixel_m': header.object_pixel_m and list(header.object_pixel_m),
        'photons_per_frame': header.photons_per_frame,
        'probe_modes': len(facts.probe),
        'epochs': len(header.losses),
        'best_epoch': best and best.epoch,
        'best_training_loss': best and best.training,
        'best_validation_loss': best and best.validation,
        'training_loss': last and last.training,
        'validation_loss': last and last.validation,
        'versions': header.versions,
        'config': header.config.model_dump(mode='json'),
        'history': [asdict(record) for record in header.losses],
    }


def probe_of(path: Path) -> tuple[npt.NDArray[np.complexfloating], tuple[float, float] | None]:
    """Return the probe ``(M, H, W)`` of a model file, a product or a workflow folder, and the pixel size in metres.

    Raises:
        InputError: the file holds no probe, or is damaged.
        ModelFileError: the model file cannot be used.
    """
    if path.suffix == MODEL_SUFFIX and path.is_file():
        facts = read_facts(path)
        return facts.probe, facts.header.object_pixel_m
    product_file = path / PRODUCT_FILE if is_workflow_folder(path) else path
    if product_file.suffix not in PRODUCT_SUFFIXES or product_file.name == DIFFRACTION_FILE:
        raise InputError(f'{path} holds no probe to draw: give a model file, a product, or a workflow folder.')
    product = read_product(product_file)
    pixel = product.probes.get_pixel_geometry()
    return product.probes.get_probe_no_opr().get_array(), (float(pixel.height_m), float(pixel.width_m))


def _text_picture(probe: npt.NDArray[np.complexfloating]) -> str:
    """Return the amplitude of the first mode as text: a thumbnail for terminals, whose characters are twice as high."""
    amplitude = np.abs(probe[0])
    rows, columns = (np.linspace(0, side - 1, count).round().astype(int) for side, count in zip(
        amplitude.shape, (_TEXT_ROWS, 2 * _TEXT_ROWS), strict=True
    ))  # fmt: skip
    scaled = amplitude[np.ix_(rows, columns)] / max(float(amplitude.max()), 1e-30)
    index = np.minimum((scaled * len(_SHADES)).astype(int), len(_SHADES) - 1)
    return '\n'.join(''.join(_SHADES[value] for value in row).rstrip() for row in index)


def find_models(path: Path) -> list[Path]:
    """Return the model files in a folder and in the folders in it, sorted by name."""
    return sorted((*path.glob(f'*{MODEL_SUFFIX}'), *path.glob(f'*/*{MODEL_SUFFIX}')))


def _compare_models(path: Path, models: list[Path]) -> tuple[Document, str]:
    """Return the headers of several models, and a table that compares them; a file that is none has its reason."""
    documents: list[Document] = []
    rows: list[tuple[str, ...]] = [
        (
            'model',
            'written',
            'kind',
            'generator',
            'scans',
            'pattern',
            'pixel [nm]',
            'photons',
            'epochs',
            'best',
            'validation loss',
        )
    ]
    for file in models:
        name = file.relative_to(path).as_posix()
        try:
            document = Document(path=file) | _model(file)
        except ModelFileError as error:
            documents.append({'kind': 'model', 'path': file, 'error': str(error)})
            rows.append((name, f'cannot be used: {error}', *[''] * 9))
            continue
        documents.append(document)
        loss, pixel_m = document['best_validation_loss'], document['object_pixel_m']
        rows.append(
            (
                name, document['written_at'][:16].replace('T', ' '), document['model_type'], document['generator'],
                ', '.join(document['scans']), ' x '.join(map(str, document['pattern_shape'])),
                'not known' if pixel_m is None else ' x '.join(f'{side * 1e9:.3g}' for side in pixel_m),
                f'{document["photons_per_frame"]:.3g}', str(document['epochs']), str(document['best_epoch']),
                'none' if loss is None else f'{loss:.4g}',
            )
        )  # fmt: skip
    usable = [row for row in rows if row[2]]
    widths = [max(len(row[column]) for row in usable) for column in range(len(rows[0]))]
    widths[0] = max(len(row[0]) for row in rows)
    lines = ['  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return {'kind': 'models', 'path': path, 'models': documents}, '\n'.join(lines)


def _folder(path: Path) -> Document:
    return _patterns(path / DIFFRACTION_FILE) | _product(path / PRODUCT_FILE) | {'kind': 'workflow folder'}


def _patterns(path: Path) -> Document:
    header = asdict(read_diffraction_header(path))
    return {'kind': 'patterns', 'counts_dtype': header.pop('dtype')} | header


def _product(path: Path) -> Document:
    product = read_product(path)
    metadata, probes, object_ = product.metadata, product.probes, product.object_
    pixel = object_.get_pixel_geometry()
    return {
        'kind': 'product',
        'name': metadata.name,
        'positions': len(product.probe_positions),
        'probe_shape': list(probes.get_array().shape),
        'probe_modes': probes.num_incoherent_modes,
        'probe_photons': float(np.sum(np.abs(probes.get_probe_no_opr().get_array()) ** 2)),
        'object_shape': [object_.height_px, object_.width_px],
        'object_layers': object_.num_layers,
        'object_pixel_m': [pixel.height_m, pixel.width_m],
        'photon_energy_ev': metadata.photon_energy_eV,
        'detector_distance_m': metadata.detector_distance_m,
        'far_field': metadata.far_field,
        'losses': len(product.losses),
        'last_loss': float(product.losses[-1].value) if product.losses else None,
    }


def _archive(path: Path) -> Document:
    headers = read_headers(path)
    if 'diff3d' not in headers and {'object', 'coverage'} <= headers.keys():
        shapes = {name: list(header.shape) for name, header in headers.items()}
        return {'kind': 'reconstruction', 'arrays': shapes}
    if 'diff3d' not in headers:
        raise InputError(f'{path} holds neither patterns (diff3d) nor a reconstruction (object, coverage).')
    small = read_arrays(path, [key for key in _SMALL_NPZ_KEYS if key in headers])
    shape = headers['diff3d'].shape
    probe, guess = headers.get('probeGuess'), headers.get('objectGuess')
    return {
        'kind': 'training file',
        'patterns': shape[0] if shape else 0,
        'pattern_shape': list(shape[1:]),
        'counts_dtype': str(headers['diff3d'].dtype),
        'diff3d_quantity': str(small['diff3d_quantity']) if 'diff3d_quantity' in small else 'not stated',
        'bad_pixels': int(np.count_nonzero(small['bad_pixels'])) if 'bad_pixels' in small else None,
        'probe_modes': None if probe is None else probe.shape[0] if len(probe.shape) == 3 else 1,
        'object_shape': None if guess is None else list(guess.shape),
    } | read_npz_geometry(path).known()


def _rows(document: Document) -> dict[str, object]:
    """Return rows for people: pairs as a x b, and no nested values."""
    rows: dict[str, object] = {}
    for key, value in document.items():
        name = _UNITS.get(key, key)
        if isinstance(value, list | tuple) and all(isinstance(item, int | float) for item in value):
            rows[name] = ' x '.join(f'{item:.6g}' for item in value)
        elif isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
            rows[name] = ', '.join(value)
        elif isinstance(value, float):
            rows[name] = f'{value:.6g}'
        elif key in ('versions', 'arrays') and isinstance(value, dict):
            rows[name] = ', '.join(f'{key} {item}' for key, item in value.items())
        elif not isinstance(value, list | dict):
            rows[name] = value
    return rows
