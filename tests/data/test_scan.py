"""RawScan: what is refused and with which sentence, and the split of positions into frames."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ptychodus.api.probe import ProbeGeometry

from ptychopinn_torch_plugin.data import validation as checks
from ptychopinn_torch_plugin.data.scan import RawScan, make_raw_scan, patch_bounds
from ptychopinn_torch_plugin.errors import InputError


def parts(**changes: object) -> dict[str, Any]:
    """Arguments of a good scan: 4 patterns of 20 x 17 pixels on an object grid of 30 x 29."""
    good: dict[str, Any] = {
        'counts': np.full((4, 20, 17), 3, dtype=np.uint16),
        'positions': np.array([[10.0, 9.0], [12.3, 9.0], [10.0, 15.7], [18.0, 12.5]]),
        'probe': np.ones((20, 17), dtype=np.complex64),
        'object_shape': (30, 29),
    }
    good.update(changes)
    return good


def build(**changes: object) -> RawScan:
    return make_raw_scan(**parts(**changes))


def counts_with(value: float, dtype: npt.DTypeLike = np.float32) -> np.ndarray:
    counts = np.full((4, 20, 17), 3, dtype=dtype)
    counts[2, 5, 6] = value
    return counts


def masked(*pixels: tuple[int, int]) -> np.ndarray:
    mask = np.zeros((20, 17), dtype=np.bool_)
    for pixel in pixels:
        mask[pixel] = True
    return mask


def test_a_good_scan_is_put_together() -> None:
    scan = build(fresnel_numbers=(1e-5, 2e-5), name='star')
    assert (scan.size, scan.pattern_shape, scan.object_shape) == (4, (20, 17), (30, 29))
    assert scan.probe.shape == (1, 20, 17)
    assert not scan.bad_pixels.any()
    assert (scan.object_guess == 1).all()
    assert (scan.fresnel_numbers, scan.name) == ((1e-5, 2e-5), 'star')


@pytest.mark.parametrize(
    'dtype', ['u1', 'u2', 'u4', 'u8', 'i1', 'i2', 'i4', 'i8', 'f2', 'f4', 'f8', '>u2', '>f4'], ids=str
)
def test_every_real_dtype_is_kept_and_not_copied(dtype: str) -> None:
    counts = np.full((4, 20, 17), 3, dtype=dtype)
    scan = build(counts=counts)
    assert scan.counts is counts
    assert scan.counts.dtype == np.dtype(dtype)


def test_a_memory_map_stays_one_and_is_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / 'counts.npy', counts_with(-1.0))
    monkeypatch.setattr(checks, 'BLOCK_ELEMENTS', 20 * 17)
    counts = np.load(tmp_path / 'counts.npy', mmap_mode='r')
    assert len(list(checks.frame_blocks(counts))) == 4
    with pytest.raises(InputError, match='negative'):
        build(counts=counts)
    scan = build(counts=counts, bad_pixels=masked((5, 6)))
    assert isinstance(scan.counts, np.memmap)


@pytest.mark.parametrize(
    ('changes', 'sentence'),
    [
        ({'counts': np.ones((4, 20, 17), dtype=np.bool_)}, 'counts has dtype bool: give photon counts as integers'),
        ({'counts': np.ones((4, 20, 17), dtype=np.complex64)}, 'counts has dtype complex64: give photon counts'),
        ({'counts': np.ones((4, 20, 17), dtype=object)}, 'counts has dtype object: give photon counts'),
        ({'counts': np.ones((20, 17))}, r'counts has shape \(20, 17\): give three axes'),
        ({'counts': np.ones((0, 20, 17))}, 'counts holds 0 patterns: give at least one'),
        ({'counts': np.ones((4, 15, 17))}, '15 x 17 pixels: both sides must lie between 16 and 4096'),
        ({'counts': np.broadcast_to(np.ones(1), (4, 20, 4097))}, '20 x 4097 pixels: both sides'),
        ({'counts': counts_with(np.nan)}, r'not finite \(NaN or infinity\) in 1 pixel outside .* \(y, x\) = \(5, 6\)'),
        ({'counts': counts_with(np.inf)}, 'counts has values that are not finite'),
        ({'counts': counts_with(-1)}, r'counts has negative values in 1 pixel outside bad_pixels, first at .*\(5, 6\)'),
        ({'counts': counts_with(-1, np.int32)}, 'counts has negative values'),
        (
            {'counts': counts_with(65535, np.uint16)},
            'the value 65535, the mark of a gap .* in 1 pixel outside',
        ),
        ({'counts': counts_with(2**32 - 1, np.uint32)}, 'the value 4294967295, the mark of a gap'),
        ({'counts': np.zeros((4, 20, 17))}, 'counts is zero in every pixel of every pattern'),
        ({'counts': counts_with(0) * 0 + masked((1, 1)), 'bad_pixels': masked((1, 1))}, 'counts is zero in every'),
        ({'positions': np.ones((4, 2), dtype=complex)}, 'positions has dtype complex128: give real numbers'),
        ({'positions': np.ones((2, 4))}, r'positions has shape \(2, 4\): give \(n, 2\)'),
        ({'positions': np.ones((3, 2))}, 'positions holds 3 positions for 4 patterns'),
        ({'positions': [[9, 9], [9, np.nan], [9, 9], [np.inf, 9]]}, '2 entries that are not finite, first number 1'),
        (
            {'positions': [[9, 9], [9, 9], [-10.5, 9], [9, 9]]},
            r'1 entries whose patch lies .* number 2 at .*\(-10.5, 9',
        ),
        ({'positions': [[9, 9], [9, 9], [9, 37.0], [9, 9]]}, 'wholly outside the object grid of 30 x 29'),
        ({'positions': [[9, 9], [9, 9], [9, 1e300], [9, 9]]}, 'wholly outside the object grid'),
        ({'probe': np.ones((20, 17))}, 'probe has dtype float64: give a complex wave'),
        ({'probe': np.ones(17, dtype=complex)}, r'probe has shape \(17,\): give \(H, W\)'),
        ({'probe': np.ones((0, 20, 17), dtype=complex)}, r'probe has shape \(0, 20, 17\)'),
        ({'probe': np.ones((17, 20), dtype=complex)}, 'probe has 17 x 20 pixels but the patterns have 20 x 17'),
        ({'probe': np.full((20, 17), np.nan + 0j)}, 'probe has values that are not finite'),
        ({'probe': np.zeros((2, 20, 17), dtype=complex)}, 'probe is zero everywhere'),
        ({'bad_pixels': np.zeros((17, 20), dtype=np.bool_)}, r'bad_pixels has shape \(17, 20\) but the patterns have'),
        ({'bad_pixels': np.full((20, 17), 2)}, 'is not a mask: give booleans'),
        ({'bad_pixels': np.zeros((20, 17))}, r'bad_pixels \(dtype float64\) is not a mask'),
        ({'bad_pixels': np.ones((20, 17), dtype=np.bool_)}, 'marks every pixel as bad: is the mask inverted'),
        ({'object_guess': np.ones((30, 29))}, 'object_guess has dtype float64: give a complex transmission'),
        ({'object_guess': np.ones((2, 30, 29), dtype=complex)}, 'object_guess has 2 layers: only one is supported'),
        ({'object_guess': np.ones((0, 29), dtype=complex)}, r'object_guess has shape \(0, 29\)'),
        ({'object_guess': np.full((30, 29), np.inf + 0j)}, 'object_guess has values that are not finite'),
        ({'object_guess': np.ones((31, 29), dtype=complex)}, r'shape \(31, 29\) but object_shape is \(30, 29\)'),
        ({'object_shape': (30, 0)}, r'object_shape is \(30, 0\): give \(height, width\)'),
        ({'object_shape': (30.5, 29)}, 'object_shape is'),
        ({'object_shape': None, 'positions': np.eye(4, 2) * 1e9}, 'more than 32768: give them in pixels'),
        ({'fresnel_numbers': (0.0, np.nan)}, 'fresnel_numbers is .* give two finite numbers'),
        ({'fresnel_numbers': (1.0, 2.0, 3.0)}, 'fresnel_numbers is'),
    ],
)
def test_every_fault_has_its_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        build(**changes)


@pytest.mark.parametrize('value', [np.nan, np.inf, -4.0])
def test_values_below_the_mask_are_not_checked(value: float) -> None:
    assert build(counts=counts_with(value), bad_pixels=masked((5, 6)).astype(np.uint8)).bad_pixels[5, 6]


def test_gap_marks_below_the_mask_are_not_checked() -> None:
    build(counts=counts_with(65535, np.uint16), bad_pixels=masked((5, 6)))


def test_gap_marks_are_found_in_every_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, 'BLOCK_ELEMENTS', 20 * 17)
    with pytest.raises(InputError, match='the value 65535'):
        build(counts=counts_with(65535, np.uint16))


def test_the_largest_of_a_signed_type_is_a_count() -> None:
    build(counts=counts_with(32767, np.int16))


def test_empty_patterns_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    counts = np.full((4, 20, 17), 3, dtype=np.uint16)
    counts[1] = 0
    counts[3] = 65535 * masked((0, 0))
    with caplog.at_level(logging.WARNING):
        build(counts=counts, bad_pixels=masked((0, 0)), name='dose series')
    assert 'dose series: 2 of 4 patterns are empty' in caplog.text


def test_a_selection_is_a_view_where_it_can_be() -> None:
    counts = np.full((4, 20, 17), 3, dtype=np.uint16)
    counts[[0, 3]] = 0
    scan = build(counts=counts)
    assert (scan.empty.tolist(), scan.lit.tolist()) == ([0, 3], [1, 2])
    lit = scan.without_empty()
    assert np.shares_memory(lit.counts, counts)
    assert (lit.size, lit.empty.size, lit.object_shape) == (2, 0, scan.object_shape)
    assert np.array_equal(lit.positions, scan.positions[1:3])
    assert lit.without_empty() is lit
    others = scan.select(np.array([0, 2, 3]))
    assert np.array_equal(others.counts, counts[[0, 2, 3]])
    assert others.empty.tolist() == [0, 2]


@pytest.mark.parametrize(('dtype', 'mark'), [('i4', 2**31 - 1), ('i8', 2**32 - 1), ('f4', 2.0**32), ('f8', 2**32 - 1)])
def test_gap_marks_survive_a_conversion(dtype: str, mark: float) -> None:
    with pytest.raises(InputError, match='the mark of a gap'):
        build(counts=counts_with(mark, dtype))


def test_duplicate_positions_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        build(positions=[[9, 9], [9, 9], [9, 9], [9, 10]])
    assert '2 of 4 positions repeat' in caplog.text


def test_the_first_of_several_coherent_modes_is_taken(caplog: pytest.LogCaptureFixture) -> None:
    probe = np.arange(1, 7).reshape(3, 2, 1, 1) * np.ones((1, 1, 20, 17), dtype=complex)
    with caplog.at_level(logging.INFO):
        scan = build(probe=probe)
    assert np.array_equal(scan.probe, probe[0])
    assert 'of 3 coherent probe modes the first' in caplog.text
    caplog.clear()
    build(probe=probe[:1])
    assert 'coherent' not in caplog.text


def test_a_stack_of_one_layer_is_squeezed() -> None:
    guess = np.full((1, 30, 29), 2j)
    assert np.array_equal(build(object_guess=guess, object_shape=None).object_guess, guess[0])


@pytest.mark.parametrize('offset', [(0.0, 0.0), (-1000.0, 54321.0)])
def test_without_a_grid_one_is_made_that_just_holds_all_patches(offset: tuple[float, float]) -> None:
    positions = parts()['positions'] + offset
    scan = build(object_shape=None, positions=positions)
    patch_origins, subpixel_shifts = patch_bounds(scan.positions, scan.pattern_shape)
    assert patch_origins.min(axis=0).tolist() == [0, 0]
    assert (patch_origins.max(axis=0) + scan.pattern_shape).tolist() == list(scan.object_shape)
    shift = positions - scan.positions
    assert np.allclose(shift, np.round(shift[0]), atol=1e-9)
    assert np.allclose(subpixel_shifts, patch_bounds(positions, scan.pattern_shape)[1], atol=1e-9)


def test_patches_may_reach_over_the_edge() -> None:
    build(positions=[[-9.4, 9], [38.4, 9], [9, -7.5], [9, 36.9]])


sides = st.integers(min_value=1, max_value=129)
offsets = st.floats(min_value=0.0, max_value=5000.0, allow_nan=False)


@settings(max_examples=200, deadline=None)
@given(height=sides, width=sides, dy=offsets, dx=offsets)
def test_frames_are_those_of_the_host(height: int, width: int, dy: float, dx: float) -> None:
    y, x = (height - 1) / 2 + dy, (width - 1) / 2 + dx
    bounds = ProbeGeometry(width, height, 1.0, 1.0).resolve_patch_bounds(x, y)
    patch_origins, subpixel_shifts = patch_bounds(np.array([[y, x]]), (height, width))
    assert patch_origins.tolist() == [[bounds.y_slice.start, bounds.x_slice.start]]
    assert subpixel_shifts.tolist() == [[bounds.dy, bounds.dx]]


@settings(max_examples=200, deadline=None)
@given(side=sides, centre=st.floats(min_value=-1e6, max_value=1e6, allow_nan=False))
def test_remainders_lie_in_the_unit_interval_everywhere(side: int, centre: float) -> None:
    patch_origins, subpixel_shifts = patch_bounds(np.array([[centre, centre]]), (side, side))
    assert patch_origins.dtype == np.int64
    assert (subpixel_shifts >= 0).all()
    assert (subpixel_shifts < 1).all()
    assert np.allclose(patch_origins + (side - 1) / 2 + subpixel_shifts, centre, atol=1e-9)


def test_a_name_that_is_not_utf_8_can_be_written() -> None:
    name = os.fsdecode(b'scan-\xff.npz')
    with pytest.raises(UnicodeEncodeError):
        name.encode()
    assert make_raw_scan(**parts(name=name)).name == 'scan-\\udcff.npz'
