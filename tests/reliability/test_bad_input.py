"""Bad input: refused in one sentence before anything starts, or reconstructed to a finite object.

The sentence names the field, what is wrong with it, and what to do. Everything goes through the real doors: arrays,
products as the host hands them over, workflow folders, training files, settings.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import annotated_types
import h5py
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ptychodus.api.assemble import AssembledDiffractionData
from ptychodus.api.geometry import PixelGeometry
from ptychodus.api.io import load_product, save_diffraction_data, save_product
from ptychodus.api.object import Object
from ptychodus.api.probe import ProbeSequence
from ptychodus.api.probe_positions import ProbePosition, ProbePositionSequence
from ptychodus.api.product import Product
from ptychodus.api.reconstruct import ReconstructInput
from ptychodus.api.settings import SettingsRegistry

from ptychopinn_torch_plugin.config import parse_config
from ptychopinn_torch_plugin.data.io.product import product_from_reconstruction, scan_from_reconstruct_input
from ptychopinn_torch_plugin.data.io.workflow_folder import read_workflow_folder
from ptychopinn_torch_plugin.data.scan import RawScan, make_raw_scan
from ptychopinn_torch_plugin.engines.pipeline import reconstruct, refine
from ptychopinn_torch_plugin.errors import ConfigurationError, InputError, PtychoPINNError
from ptychopinn_torch_plugin.host import runs
from ptychopinn_torch_plugin.host.library import PtychoPINNPyTorchLibrary
from ptychopinn_torch_plugin.host.settings import SECTIONS
from ptychopinn_torch_plugin.training.run import train
from ptychopinn_torch_plugin.types import Reconstruction
from tests.helpers.fault_report import FaultReport
from tests.helpers.models import untrained_model
from tests.helpers.products import random_product
from tests.helpers.scans import curved_probe, make_scan

NOTHING_STARTED = 'nothing was started'
ALL_POSITIONS = 'the whole product, every position with its number'
SHAPE = (16, 17)
TINY = parse_config(
    {
        'model': {'width': 4, 'levels': 1, 'steps': 1, 'memory_channels': 0},
        'training': {'epochs': 1},
        'refinement': {'refine_epochs': 2, 'probe_start': 0, 'positions_start': 1, 'refine_intensity': True},
        'inference': {'steps': 2, 'accelerator': 'cpu'},
    }
)


def parts(**changes: object) -> dict[str, Any]:
    """Arguments of a good scan: 5 patterns of 16 x 17 pixels on a grid of 30 x 30."""
    good: dict[str, Any] = {
        'counts': np.random.default_rng(0).poisson(9.0, (5, *SHAPE)).astype(np.uint16),
        'positions': np.array([[9.0, 9.0], [12.3, 9.0], [10.0, 14.7], [15.0, 12.5], [17.2, 16.0]]),
        'probe': curved_probe(SHAPE),
        'object_shape': (30, 30),
    }
    good.update(changes)
    return good


def counts_with(value: float, dtype: npt.DTypeLike = np.float32) -> npt.NDArray[Any]:
    counts: npt.NDArray[Any] = parts()['counts'].astype(dtype)
    counts[2, 5, 6] = value
    return counts


def with_position(number: int, *position: float) -> npt.NDArray[np.float64]:
    positions: npt.NDArray[np.float64] = parts()['positions']
    positions[number] = position
    return positions


def huge(side: int) -> npt.NDArray[np.uint16]:
    """Three frames of ``side * side`` pixels that take no memory."""
    return np.broadcast_to(np.uint16(1), (3, side, side))


def is_one_sentence(error: PtychoPINNError) -> bool:
    text = str(error)
    return text.endswith('.') and '\n' not in text and 20 < len(text) < 500


ARRAYS: tuple[tuple[str, dict[str, Any], str], ...] = (
    ('fewer positions than patterns', {'positions': np.ones((4, 2))}, 'positions holds 4 positions for 5 patterns'),
    ('more positions than patterns', {'positions': np.ones((6, 2))}, 'positions holds 6 positions for 5 patterns'),
    ('a NaN count', {'counts': counts_with(np.nan)}, r'counts has values that are not finite .* in 1 pixel .*\(5, 6\)'),
    ('an infinite count', {'counts': counts_with(np.inf)}, 'counts has values that are not finite'),
    (
        'a negative count',
        {'counts': counts_with(-1, np.int32)},
        r'counts has negative values .*mark them in bad_pixels',
    ),
    ('gap pixels of uint8 not in the mask', {'counts': counts_with(255, np.uint8)}, 'the value 255, the mark of a gap'),
    ('gap pixels of uint16 not in the mask', {'counts': counts_with(65535, np.uint16)}, 'the value 65535, the mark'),
    ('gap pixels of uint32 not in the mask', {'counts': counts_with(2**32 - 1, np.uint32)}, 'the value 4294967295'),
    ('gap pixels of int32 not in the mask', {'counts': counts_with(2**31 - 1, np.int32)}, 'the value 2147483647'),
    (
        'gap pixels of uint64 not in the mask',
        {'counts': counts_with(2**64 - 1, np.uint64)},
        'the value 18446744073709551615',
    ),
    (
        'gap pixels of uint32, converted to float64',
        {'counts': counts_with(2**32 - 1, np.float64)},
        'the value 4294967295',
    ),
    ('gap pixels of uint32, converted to float32', {'counts': counts_with(2**32, np.float32)}, 'the value 4294967296'),
    ('counts of 1e300', {'counts': counts_with(1e300, np.float64)}, r'counts has values above 1e\+12'),
    ('all frames zero', {'counts': np.zeros((5, *SHAPE), np.uint16)}, 'counts is zero in every pixel of every pattern'),
    ('counts of 1e-20', {'counts': np.full((5, *SHAPE), 1e-20)}, 'nowhere larger than 1e-20, .* multiply the patterns'),
    ('counts of dtype bool', {'counts': np.ones((5, *SHAPE), np.bool_)}, 'counts has dtype bool: give photon counts'),
    ('counts of dtype complex', {'counts': np.ones((5, *SHAPE), complex)}, 'counts has dtype complex128'),
    ('counts of dtype object', {'counts': np.ones((5, *SHAPE), object)}, 'counts has dtype object'),
    ('counts of dtype string', {'counts': np.full((5, *SHAPE), '1')}, 'counts has dtype <U1'),
    ('counts of dtype timedelta', {'counts': np.ones((5, *SHAPE), 'm8[s]')}, 'counts has dtype timedelta64'),
    ('counts of a record dtype', {'counts': np.zeros((5, *SHAPE), 'u2,u2')}, 'counts has dtype'),
    (
        'an empty scan',
        {'counts': np.zeros((0, *SHAPE), np.uint16), 'positions': np.zeros((0, 2))},
        'counts holds 0 patterns',
    ),
    ('one frame without the axis of patterns', {'counts': np.ones(SHAPE, np.uint16)}, r'counts has shape \(16, 17\)'),
    (
        'frames of 8 x 8 pixels',
        {'counts': np.ones((5, 8, 8), np.uint16)},
        'patterns of 8 x 8 pixels: .* pad the patterns',
    ),
    ('frames of 16384 x 16384 pixels', {'counts': huge(16384)}, 'patterns of 16384 x 16384 pixels: .* crop, bin'),
    ('frames without pixels', {'counts': np.ones((5, 0, 17), np.uint16)}, 'patterns of 0 x 17 pixels'),
    ('a position that is NaN', {'positions': with_position(3, np.nan, 9)}, 'positions has 1 entries .* first number 3'),
    (
        'a position outside the object grid',
        {'positions': with_position(1, 400, 9)},
        r'outside the object grid .* number 1 at .*400',
    ),
    (
        'positions in metres beside a grid',
        {'positions': 1e9 + parts()['positions']},
        'outside the object grid of 30 x 30',
    ),
    (
        'positions spread over 1e9 pixels',
        {'positions': with_position(0, 1e9, 9), 'object_shape': None},
        'give them in pixels',
    ),
    ('positions of dtype complex', {'positions': np.ones((5, 2), complex)}, 'positions has dtype complex128'),
    ('positions of dtype bool', {'positions': np.ones((5, 2), np.bool_)}, 'positions has dtype bool'),
    ('positions of dtype object', {'positions': np.ones((5, 2), object)}, 'positions has dtype object'),
    ('positions of three columns', {'positions': np.ones((5, 3))}, r'positions has shape \(5, 3\)'),
    (
        'a probe of another size',
        {'probe': curved_probe((20, 20))},
        'probe has 20 x 20 pixels but the patterns have 16 x 17',
    ),
    ('a probe that is zero', {'probe': np.zeros(SHAPE, complex)}, 'probe is zero everywhere: give a probe guess'),
    ('a probe with a NaN', {'probe': np.full(SHAPE, np.nan + 0j)}, 'probe has values that are not finite'),
    ('a probe of real numbers', {'probe': np.ones(SHAPE)}, 'probe has dtype float64: give a complex wave'),
    ('a probe of dtype object', {'probe': np.ones(SHAPE, object)}, 'probe has dtype object'),
    ('a probe without modes', {'probe': np.ones((0, *SHAPE), complex)}, r'probe has shape \(0, 16, 17\)'),
    (
        'an all-bad mask',
        {'bad_pixels': np.ones(SHAPE, np.bool_)},
        'bad_pixels marks every pixel as bad: is the mask inverted',
    ),
    ('a mask of another size', {'bad_pixels': np.zeros((17, 16), np.bool_)}, r'bad_pixels has shape \(17, 16\)'),
    ('a mask of floats', {'bad_pixels': np.zeros(SHAPE)}, 'is not a mask: give booleans'),
    ('a mask of dtype object', {'bad_pixels': np.zeros(SHAPE, object)}, r'bad_pixels \(dtype object\) is not a mask'),
    (
        'an object of several layers',
        {'object_guess': np.ones((3, 30, 30), complex), 'object_shape': None},
        'has 3 layers',
    ),
    (
        'an object with a NaN',
        {'object_guess': np.full((30, 30), np.nan + 0j), 'object_shape': None},
        'object_guess has values',
    ),
    (
        'an object of real numbers',
        {'object_guess': np.ones((30, 30)), 'object_shape': None},
        'object_guess has dtype float64',
    ),
    ('an object grid without pixels', {'object_shape': (0, 30)}, r'object_shape is \(0, 30\)'),
    (
        'Fresnel numbers that are NaN',
        {'fresnel_numbers': (np.nan, 0.0)},
        'fresnel_numbers is .* give two finite numbers',
    ),
)


@pytest.mark.parametrize(('fault', 'changes', 'sentence'), ARRAYS, ids=[fault for fault, *_ in ARRAYS])
def test_bad_arrays_are_refused(fault: str, changes: dict[str, Any], sentence: str, fault_report: FaultReport) -> None:
    with pytest.raises(InputError, match=sentence) as caught:
        make_raw_scan(**parts(**changes))
    assert is_one_sentence(caught.value)
    fault_report.record(fault, str(caught.value), NOTHING_STARTED)
    fault_report.count(1, 'bad arrays')


def test_the_good_arrays_are_taken() -> None:
    assert make_raw_scan(**parts()).size == 5


@pytest.mark.parametrize(
    ('fault', 'changes', 'memory'),
    [
        (
            'frames of 4096 x 4096 pixels, a machine of 1 GB',
            {'counts': huge(4096), 'probe': np.ones((4096, 4096), 'c8')},
            2**30,
        ),
        ('an object of 20000 x 20000 pixels, a machine of 16 GB', {'positions': with_position(0, 2e4, 2e4)}, 2**34),
    ],
)
def test_what_does_not_fit_into_memory_is_refused(
    fault: str, changes: dict[str, Any], memory: int, monkeypatch: pytest.MonkeyPatch, fault_report: FaultReport
) -> None:
    monkeypatch.setattr('ptychopinn_torch_plugin.data.validation.physical_memory', lambda: memory)
    given = parts(object_shape=None, **changes)
    given['positions'] = given['positions'][: len(given['counts'])]
    with pytest.raises(InputError, match='GiB of memory .this machine has') as caught:
        make_raw_scan(**given)
    fault_report.record(fault, str(caught.value), NOTHING_STARTED)
    fault_report.count(1, 'bad arrays')


# What is unusual and works


def assert_finite(result: Reconstruction, scan: RawScan) -> None:
    """Nothing non-finite leaves the package, and every position is still there."""
    for name in ('object_array', 'probe', 'positions'):
        assert np.isfinite(getattr(result, name)).all(), f'non-finite {name}'
    assert np.isfinite([record.training for record in result.losses]).all(), 'non-finite losses'
    assert result.object_array.shape == scan.object_shape
    assert result.positions.shape == scan.positions.shape


def test_empty_frames_are_skipped_counted_and_reported(
    caplog: pytest.LogCaptureFixture, fault_report: FaultReport
) -> None:
    whole, _ = make_scan((16, 17), rows=3)
    counts = whole.counts.copy()
    counts[[0, 4, 8]] = 0
    counts[4, 1, 2] = 7
    mask = np.zeros(SHAPE, np.bool_)
    mask[1, 2] = True  # the only light of pattern 4 is in a bad pixel
    with caplog.at_level(logging.WARNING):
        scan = make_raw_scan(
            counts, whole.positions, whole.probe, bad_pixels=mask, object_guess=whole.object_guess, name='flicker'
        )
    assert scan.empty.tolist() == [0, 4, 8]
    assert 'flicker: 3 of 9 patterns are empty (no photon in a good pixel), first number 0: they are' in caplog.text
    result = refine(scan, TINY)
    assert_finite(result, scan)
    alone = scan.select(np.array([1, 2, 3, 5, 6, 7]))
    without = refine(alone, TINY)
    np.testing.assert_array_equal(result.object_array, without.object_array)
    np.testing.assert_array_equal(result.positions[scan.lit], without.positions)
    np.testing.assert_array_equal(result.positions[scan.empty], scan.positions[scan.empty])
    model = untrained_model(TINY)
    np.testing.assert_array_equal(
        reconstruct(scan, model, TINY).object_array, reconstruct(alone, model, TINY).object_array
    )
    fault_report.record('3 of 9 frames are all zero', caplog.messages[0] + ' (warning)', ALL_POSITIONS)
    fault_report.count(1, 'bad arrays')


def test_the_product_keeps_the_positions_of_empty_frames(tmp_path: Path) -> None:
    parameters = reconstruct_input()
    parameters.diffraction_patterns[2] = 0
    scan = scan_from_reconstruct_input(parameters)
    product = product_from_reconstruction(parameters, refine(scan, TINY))
    save_product(tmp_path / 'product.h5', product)
    saved = load_product(tmp_path / 'product.h5')
    assert saved.probe_positions.get_indexes().tolist() == list(range(len(parameters.diffraction_patterns)))


def test_training_skips_empty_frames(tmp_path: Path) -> None:
    scan, _ = make_scan((16, 17), rows=3)
    counts = scan.counts.copy()
    counts[[3, 4]] = 0
    flickering = make_raw_scan(counts, scan.positions, scan.probe, object_guess=scan.object_guess)
    lit = flickering.select(flickering.lit)
    models = [train([each], TINY, tmp_path / name).read_bytes() for name, each in (('a', flickering), ('b', lit))]
    assert models[0] == models[1]


def test_duplicate_positions_are_reported(caplog: pytest.LogCaptureFixture, fault_report: FaultReport) -> None:
    with caplog.at_level(logging.WARNING):
        scan = make_raw_scan(**parts(positions=np.full((5, 2), 12.25)))
    assert '4 of 5 positions repeat another one exactly, first number 1' in caplog.text
    assert_finite(refine(scan, TINY), scan)
    assert_finite(reconstruct(scan, untrained_model(TINY), TINY), scan)
    fault_report.record('all positions are the same', caplog.messages[0] + ' (warning)', ALL_POSITIONS)
    fault_report.count(1, 'bad arrays')


@pytest.mark.parametrize('number', [1, 2, 4])
def test_few_frames_are_enough(
    number: int, tmp_path: Path, caplog: pytest.LogCaptureFixture, fault_report: FaultReport
) -> None:
    given = parts()
    scan = make_raw_scan(**(given | {name: given[name][:number] for name in ('counts', 'positions')}))
    assert_finite(refine(scan, TINY), scan)
    assert_finite(reconstruct(scan, untrained_model(TINY), TINY), scan)
    with caplog.at_level(logging.WARNING):
        assert train([scan], TINY, tmp_path).is_file()
    told = next(message for message in caplog.messages if 'positions' in message)
    fault_report.record(
        f'a scan of {number} frame{"s" if number > 1 else ""}, fewer than a group',
        told + ' (warning)',
        'a model and an object',
    )
    fault_report.count(1, 'bad arrays')


# Products, as the host hands them over


def reconstruct_input() -> ReconstructInput:
    """Six Poisson patterns of 16 x 17 pixels with a product of the host."""
    counts = np.random.default_rng(1).poisson(9.0, (6, *SHAPE)).astype(np.uint16)
    return ReconstructInput(counts, np.zeros(SHAPE, np.bool_), random_product(SHAPE, modes=2, positions=6, seed=0))


def with_product(change: Callable[[Product], dict[str, Any]]) -> Callable[[ReconstructInput], ReconstructInput]:
    return lambda given: replace(given, product=replace(given.product, **change(given.product)))


def with_layers(number: int) -> Callable[[Product], dict[str, Any]]:
    def change(product: Product) -> dict[str, Any]:
        old = product.object_
        array = np.repeat(old.get_array(), number, axis=0)
        return {'object_': Object(array, old.get_pixel_geometry(), old.get_center(), [1e-6] * (number - 1))}

    return change


def with_probe(array: npt.NDArray[Any] | None) -> Callable[[Product], dict[str, Any]]:
    return lambda product: {'probes': ProbeSequence(array, None, product.probes.get_pixel_geometry())}


def with_points(*points: ProbePosition) -> Callable[[Product], dict[str, Any]]:
    return lambda _: {'probe_positions': ProbePositionSequence(list(points))}


def moved(product: Product) -> dict[str, Any]:
    """The product's positions, one of them a metre off."""
    first, *others = product.probe_positions
    return {'probe_positions': ProbePositionSequence([replace(first, x_m=1.0), *others])}


def not_a_number(product: Product) -> dict[str, Any]:
    first, *others = product.probe_positions
    return {'probe_positions': ProbePositionSequence([replace(first, y_m=float('nan')), *others])}


PRODUCTS: tuple[tuple[str, Callable[[ReconstructInput], ReconstructInput], str], ...] = (
    (
        'a near-field product',
        with_product(lambda product: {'metadata': replace(product.metadata, far_field=False)}),
        r'near field \(far_field is False\): only far-field scans are supported',
    ),
    ('a product of 2 layers', with_product(with_layers(2)), 'has 2 layers: only one is supported; flatten'),
    ('a product of 9 layers', with_product(with_layers(9)), 'has 9 layers'),
    ('a product without a probe', with_product(with_probe(None)), 'has no probe: initialise one'),
    ('a product whose probe is zero', with_product(with_probe(np.zeros((1, 1, *SHAPE), complex))), 'probe is zero'),
    (
        'a product whose probe has a NaN',
        with_product(with_probe(np.full((1, 1, *SHAPE), np.nan + 0j))),
        'probe has values',
    ),
    (
        'a product whose probe has another size',
        with_product(with_probe(np.ones((1, 1, 32, 32), complex))),
        '32 x 32 pixels',
    ),
    ('a product without positions', with_product(with_points()), 'positions holds 0 positions for 6 patterns'),
    ('a product with one position', with_product(with_points(ProbePosition(0, 0.0, 0.0))), 'holds 1 positions for 6'),
    ('a product with a position a metre off', with_product(moved), 'outside the object grid .* first number 0'),
    ('a product with a position that is NaN', with_product(not_a_number), 'not finite, first number 0'),
    (
        'a product without pixels of a size',
        with_product(
            lambda product: {
                'probes': ProbeSequence(product.probes.get_array(), None, PixelGeometry(width_m=0.0, height_m=0.0))
            }
        ),
        'has pixels of 0 x 0 m: set detector distance',
    ),
    (
        'patterns of an empty scan',
        lambda given: replace(given, diffraction_patterns=given.diffraction_patterns[:0]),
        'counts holds 0 patterns',
    ),
    (
        'patterns in one plane',
        lambda given: replace(given, diffraction_patterns=given.diffraction_patterns[0]),
        r'counts has shape \(16, 17\)',
    ),
    ('a mask that is all bad', lambda given: replace(given, bad_pixels=np.ones(SHAPE, np.bool_)), 'every pixel as bad'),
)


@pytest.mark.parametrize(('fault', 'change', 'sentence'), PRODUCTS, ids=[fault for fault, *_ in PRODUCTS])
def test_bad_products_are_refused_before_a_worker_starts(
    fault: str,
    change: Callable[[ReconstructInput], ReconstructInput],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    fault_report: FaultReport,
) -> None:
    def never(*_: object, **__: object) -> Iterator[object]:
        raise AssertionError('a worker was started')

    monkeypatch.setattr(runs, 'run_job', never)
    *_, refiner = PtychoPINNPyTorchLibrary(SettingsRegistry())
    with pytest.raises(InputError, match=sentence) as caught:
        list(refiner.reconstruct(change(reconstruct_input())))
    assert is_one_sentence(caught.value)
    fault_report.record(fault, str(caught.value), NOTHING_STARTED)
    fault_report.count(1, 'bad products')


# Files


@pytest.fixture(scope='module')
def good_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six patterns and their product in the host's own files."""
    folder = tmp_path_factory.mktemp('workflow')
    given = reconstruct_input()
    data = AssembledDiffractionData(
        np.arange(6), given.diffraction_patterns, PixelGeometry(width_m=1e-4, height_m=1e-4), given.bad_pixels
    )
    save_diffraction_data(folder / 'diffraction.h5', data)
    save_product(folder / 'product.h5', given.product)
    return folder


@pytest.fixture
def folder(good_folder: Path, tmp_path: Path) -> Path:
    for name in ('diffraction.h5', 'product.h5'):
        (tmp_path / name).write_bytes((good_folder / name).read_bytes())
    return tmp_path


@pytest.mark.parametrize('name', ['diffraction.h5', 'product.h5'])
def test_hdf5_may_be_cut_anywhere(name: str, folder: Path, fault_report: FaultReport) -> None:
    content = (folder / name).read_bytes()
    cuts = sorted({0, 8, 96, *np.linspace(500, len(content) - 1, 8).astype(int).tolist()})
    for cut in cuts:
        (folder / name).write_bytes(content[:cut])
        with pytest.raises(InputError, match=name) as caught:
            read_workflow_folder(folder)
    fault_report.record(f'{name} cut short at {len(cuts)} places', str(caught.value), NOTHING_STARTED)
    fault_report.count(len(cuts), 'truncated HDF5 files')


def another(file: h5py.File, key: str, data: object) -> None:
    """Put ``data`` in the place of the dataset ``key``, with its attributes."""
    attributes = dict(file[key].attrs)
    del file[key]
    file.create_dataset(key, data=data).attrs.update(attributes)


def declare(file: h5py.File, shape: tuple[int, ...]) -> None:
    """Patterns of ``shape`` that are declared and not there."""
    attributes = dict(file['patterns'].attrs)
    del file['patterns']
    file.create_dataset('patterns', shape=shape, dtype='u2', chunks=(1, *shape[1:])).attrs.update(attributes)


HDF5: tuple[tuple[str, str, Callable[[h5py.File], object], str], ...] = (
    ('diffraction.h5', 'without patterns', lambda file: file.pop('patterns'), 'lacks something'),
    ('diffraction.h5', 'without indexes', lambda file: file.pop('indexes'), 'lacks something'),
    ('diffraction.h5', 'without a mask', lambda file: file.pop('bad_pixels'), 'lacks something'),
    ('diffraction.h5', 'whose indexes are text', lambda file: another(file, 'indexes', ['a'] * 6), 'h5'),
    ('diffraction.h5', 'with an index too few', lambda file: another(file, 'indexes', np.arange(5)), ''),
    (
        'diffraction.h5',
        'whose patterns are complex',
        lambda file: another(file, 'patterns', np.ones((6, *SHAPE), complex)),
        'complex128',
    ),
    (
        'diffraction.h5',
        'whose patterns are booleans',
        lambda file: another(file, 'patterns', np.ones((6, *SHAPE), bool)),
        'dtype bool',
    ),
    ('diffraction.h5', 'whose patterns are text', lambda file: another(file, 'patterns', 'x'), ''),
    ('diffraction.h5', 'whose patterns are one plane', lambda file: another(file, 'patterns', np.ones(SHAPE)), ''),
    ('diffraction.h5', 'without any pattern', lambda file: another(file, 'patterns', np.ones((0, *SHAPE))), ''),
    (
        'diffraction.h5',
        'whose mask has another size',
        lambda file: another(file, 'bad_pixels', np.zeros((3, 3), bool)),
        'bad pixels shape',
    ),
    (
        'diffraction.h5',
        'that declares 200 TB in 20 kB',
        lambda file: declare(file, (10**6, 10**4, 10**4)),
        'declares arrays of',
    ),
    ('product.h5', 'without a probe', lambda file: file.pop('probe'), 'lacks something'),
    ('product.h5', 'without an object', lambda file: file.pop('object'), 'lacks something'),
    ('product.h5', 'whose probe is real', lambda file: another(file, 'probe', np.ones((1, 1, *SHAPE))), ''),
    ('product.h5', 'whose probe is text', lambda file: another(file, 'probe', 'x'), ''),
    ('product.h5', 'whose object has five axes', lambda file: another(file, 'object', np.ones((1,) * 5, complex)), ''),
    ('product.h5', 'with positions of text', lambda file: another(file, 'probe_position_x_m', ['a'] * 6), ''),
    (
        'product.h5',
        'with NaN positions',
        lambda file: another(file, 'probe_position_x_m', np.full(6, np.nan)),
        'not finite',
    ),
)


@pytest.mark.parametrize(
    ('name', 'fault', 'change', 'sentence'), HDF5, ids=[f'{name} {fault}' for name, fault, *_ in HDF5]
)
def test_wrong_hdf5_is_refused(
    name: str, fault: str, change: Callable[[h5py.File], object], sentence: str, folder: Path, fault_report: FaultReport
) -> None:
    with h5py.File(folder / name, 'a') as file:
        change(file)
    with pytest.raises(InputError, match=sentence) as caught:
        read_workflow_folder(folder)
    assert is_one_sentence(caught.value)
    fault_report.record(f'a {name} {fault}', str(caught.value), NOTHING_STARTED)
    fault_report.count(1, 'wrong HDF5 files')


def test_patterns_without_a_position_are_reported(
    folder: Path, caplog: pytest.LogCaptureFixture, fault_report: FaultReport
) -> None:
    with h5py.File(folder / 'diffraction.h5', 'a') as file:
        file['indexes'][-2:] = [100, 101]
    with caplog.at_level(logging.WARNING):
        assert read_workflow_folder(folder).size == 4
    assert 'diffraction.h5: 2 of 6 patterns have no position in product.h5 and are left out' in caplog.text
    fault_report.record(
        '2 of 6 patterns without a position', caplog.messages[0] + ' (warning)', 'the patterns with a position'
    )
    fault_report.count(1, 'wrong HDF5 files')


# Settings


def out_of_range() -> Iterator[tuple[str, str, object]]:
    """A value just out of every bound of every setting, and one of another type."""
    for section, model in SECTIONS.items():
        for name, field in model.model_fields.items():
            for bound in field.metadata:
                match bound:
                    case annotated_types.Ge(ge=limit):
                        yield section, name, limit - 1  # type: ignore[operator]
                    case annotated_types.Gt(gt=limit):
                        yield section, name, limit
                    case annotated_types.Le(le=limit):
                        yield section, name, limit + 1  # type: ignore[operator]
            if field.annotation is not str:  # any text is a value of such a setting
                yield (
                    section,
                    name,
                    {bool: 'perhaps', int: 1.5, float: float('nan')}.get(type(field.default), 'nonsense'),
                )


SETTINGS = tuple(out_of_range())


def test_settings_out_of_range_are_refused_by_name(fault_report: FaultReport) -> None:
    for section, name, value in SETTINGS:
        with pytest.raises(ConfigurationError, match=rf'{section}.*{name}|{name}') as caught:
            parse_config({section: {name: value}})
        assert '\n' not in str(caught.value)
    assert len(SETTINGS) > 100
    trees: tuple[dict[str, dict[str, int]], ...] = (
        {'training': {'epochs': 0}},
        {'model': {'width': 10**9}},
        {'data': {'surprise': 1}},
        {'surprise': {}},
    )
    for tree in trees:
        with pytest.raises(ConfigurationError) as caught:
            parse_config(tree)
        fault_report.record(f'settings {tree}', str(caught.value), NOTHING_STARTED)
    fault_report.count(len(SETTINGS) + 4, 'settings out of range')


# Whatever comes: a finite object, or our own refusal


REAL_TYPES = ['u1', 'u2', 'u4', 'u8', 'i1', 'i2', 'i4', 'i8', 'f2', 'f4', 'f8', '>u2', '>f4']
WRONG_TYPES = ['?', 'c8', 'c16', 'O', 'U3', 'S3', 'M8[s]', 'm8[s]', 'V4', 'g', 'G']
EXTREMES = [0.0, -0.0, 1e-320, 1e-12, 0.1, 1.0, 255.0, 65535.0, 2.0**31, 2.0**32, 1e12, 1e15, 1e38, 1e300, -1.0]
EXTREMES += [float('nan'), float('inf'), -float('inf')]
SCALES = [1.0, 1.0, 1e-30, 1e-160, 1e-300, 1e30, 1e160, 1e300]

ODD = [
    set(),
    set(),
    {'counts'},
    {'counts'},
    {'positions'},
    {'probe'},
    {'mask'},
    {'object'},
    {'phase'},
    {'counts', 'mask'},
]
ODD += [{'probe', 'phase', 'positions'}, {'counts', 'positions', 'probe', 'mask', 'object', 'phase'}]

sides = st.integers(min_value=16, max_value=24)
seeds = st.integers(min_value=0, max_value=10**6)


def cast(array: npt.NDArray[Any], dtype: str) -> npt.NDArray[Any]:
    """``array`` in any dtype, whatever becomes of its values."""
    with np.errstate(all='ignore'):
        if dtype == 'V4':
            return np.zeros(array.shape, 'V4')
        return array.astype('i8').astype(dtype) if dtype[0] in 'Mm' else array.astype(dtype)


@st.composite
def counts_of(draw: st.DrawFn, number: int, shape: tuple[int, int], odd: bool) -> npt.NDArray[Any]:
    rng = np.random.default_rng(draw(seeds))
    counts = rng.poisson(draw(st.sampled_from([0.003, 0.5, 9.0, 50.0])), (number, *shape)).astype(np.float64)
    if draw(st.booleans()):
        counts[rng.random(number) < 0.3] = 0
    if not odd:
        counts[-1, 7, 8] = 3
        return cast(np.minimum(counts, 100), draw(st.sampled_from(REAL_TYPES)))
    counts *= draw(st.sampled_from([1.0, 1.0, 1e-6, 1e-9, 1e-30, 1e4, 1e9]))
    for _ in range(draw(st.sampled_from([0, 0, 1, 3]))):
        spot = tuple(int(rng.integers(side)) for side in counts.shape)
        counts[spot] = draw(st.sampled_from(EXTREMES))
    return cast(counts, draw(st.sampled_from(['f4', 'f8', *REAL_TYPES, *WRONG_TYPES])))


@st.composite
def positions_of(draw: st.DrawFn, number: int, shape: tuple[int, int], odd: bool) -> npt.NDArray[Any]:
    rng = np.random.default_rng(draw(seeds))
    reach = draw(st.sampled_from([0.0, 3.0, 8.0, 16.0]))
    positions = rng.uniform(0, reach, (number, 2)) + (np.array(shape) - 1) / 2
    if draw(st.booleans()):
        positions = np.round(positions)
    if not odd:
        return positions
    match draw(st.sampled_from(['one off', 'far', 'same', 'NaN', 'short', 'columns', 'dtype'])):
        case 'far':
            positions *= draw(st.sampled_from([10.0, 30.0, 1e9]))
        case 'one off':
            positions[0] = draw(st.sampled_from([-1e3, 1e3, 1e18, 1e300]))
        case 'same':
            positions[:] = positions[0]
        case 'NaN':
            positions[-1, 0] = draw(st.sampled_from([float('nan'), float('inf')]))
        case 'short':
            positions = positions[:-1]
        case 'columns':
            positions = positions[:, :1]
        case 'dtype':
            return cast(positions, draw(st.sampled_from(['f4', 'i4', 'u2', *WRONG_TYPES])))
    return positions


@st.composite
def probes_of(draw: st.DrawFn, shape: tuple[int, int], odd: bool) -> npt.NDArray[Any]:
    modes = draw(st.sampled_from([1, 1, 2, 3]))
    probe = curved_probe(shape, modes) * draw(st.sampled_from(SCALES))
    kinds = ['zero', 'NaN', 'size', 'dtype', 'axes', 'flat', 'spot', 'weak mode']
    match draw(st.sampled_from(kinds if odd else ['as it is', 'flat', 'weak mode'])):
        case 'zero':
            probe[:] = 0
        case 'NaN':
            probe[0, 3, 3] = np.nan
        case 'size':
            probe = probe[:, 1:]
        case 'flat':
            probe[:] = draw(st.sampled_from(SCALES))
        case 'spot':
            probe[:] = 0
            probe[0, 0, 0] = 1e-200
        case 'dtype':
            probe = cast(probe.real, draw(st.sampled_from(['f8', *WRONG_TYPES])))
        case 'axes':
            probe = probe.reshape(draw(st.sampled_from([(1, *probe.shape), (1, 1, *probe.shape), (-1,)])))
        case 'weak mode':
            probe[-1] *= 1e-30
    return probe


@st.composite
def masks_of(draw: st.DrawFn, shape: tuple[int, int], odd: bool) -> npt.NDArray[Any] | None:
    rng = np.random.default_rng(draw(seeds))
    mask = rng.random(shape) < draw(st.sampled_from([0.0, 0.1, 0.5, 0.99, 1.0] if odd else [0.0, 0.1, 0.5]))
    if not odd:
        mask[7, 8] = False
        return draw(st.sampled_from([None, mask, mask.astype(np.uint8)]))
    match draw(st.sampled_from(['as it is', 'one good pixel', 'size', 'dtype'])):
        case 'one good pixel':
            mask[:] = True
            mask[shape[0] // 2, shape[1] // 2] = False
        case 'size':
            mask = mask[1:]
        case 'dtype':
            return cast(mask, draw(st.sampled_from(['u1', 'i8', 'f4', *WRONG_TYPES])))
    return mask


@st.composite
def scans(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of a scan, good, odd or bad."""
    shape = draw(sides), draw(sides)
    number = draw(st.integers(min_value=1, max_value=5))
    odd = draw(st.sampled_from(ODD))
    given: dict[str, Any] = {
        'counts': draw(counts_of(number, shape, 'counts' in odd)),
        'positions': draw(positions_of(number, shape, 'positions' in odd)),
        'probe': draw(probes_of(shape, 'probe' in odd)),
        'bad_pixels': draw(masks_of(shape, 'mask' in odd)),
    }
    kinds = ['grid', 'layers', 'dtype', 'extreme'] if 'object' in odd else ['none', 'ones', 'object']
    match draw(st.sampled_from(kinds)):
        case 'grid':
            given['object_shape'] = draw(st.sampled_from([(40, 41), (1, 1), (0, 3), (10**9, 10**9), (40.5, 2), (2,)]))
        case 'ones':
            given['object_guess'] = np.ones((40, 41), np.complex64)
        case 'object':
            given['object_guess'] = np.exp(1j * np.arange(40 * 41).reshape(40, 41))
        case 'layers':
            given['object_guess'] = np.ones((draw(st.integers(0, 2)), 40, 41), complex)
        case 'dtype':
            given['object_guess'] = cast(np.ones((40, 41)), draw(st.sampled_from(['f8', *WRONG_TYPES])))
        case 'extreme':
            given['object_guess'] = np.full((40, 41), draw(st.sampled_from(EXTREMES)), complex)
    if 'phase' in odd:
        pair = st.floats(allow_nan=True, allow_infinity=True)
        given['fresnel_numbers'] = draw(st.one_of(st.just((1e-3, 2e-3)), st.tuples(pair, pair)))
    return given


class Tally:
    """How many inputs came to which end."""

    def __init__(self) -> None:
        self.refused = 0
        self.reconstructed = 0


def come_to_an_end(given: dict[str, Any], run: Callable[[RawScan], Reconstruction], tally: Tally) -> None:
    """Reconstruct a scan to something finite, or be refused by one of our own sentences; anything else is raised."""
    try:
        scan = make_raw_scan(**given)
        with np.errstate(all='ignore'):
            result = run(scan)
    except PtychoPINNError as error:
        assert '\n' not in str(error)
        assert len(str(error)) < 600
        tally.refused += 1
        return
    assert_finite(result, scan)
    tally.reconstructed += 1


MODEL = untrained_model(TINY)
DOORS: dict[str, tuple[int, Callable[[RawScan], Reconstruction]]] = {
    'refine': (250, lambda scan: refine(scan, TINY)),
    'reconstruct': (150, lambda scan: reconstruct(scan, MODEL, TINY)),
}


@pytest.mark.parametrize('door', DOORS)
def test_every_scan_comes_to_a_finite_object_or_to_a_sentence(door: str, fault_report: FaultReport) -> None:
    examples, run = DOORS[door]
    tally = Tally()

    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(given=scans())
    def every_scan(given: dict[str, Any]) -> None:
        come_to_an_end(given, run, tally)

    every_scan()
    assert min(tally.refused, tally.reconstructed) > examples // 10, vars(tally)
    fault_report.count(tally.refused + tally.reconstructed, 'scans made up by hypothesis')
