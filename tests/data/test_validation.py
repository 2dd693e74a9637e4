"""The limits of the checks: the last value that is taken and the first that is refused."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from ptychopinn_torch_plugin.data import validation
from ptychopinn_torch_plugin.data.validation import (
    check_bad_pixels,
    check_count_values,
    check_memory,
    check_object,
    check_pattern_stack,
    check_positions,
    check_probe,
    frame_blocks,
)
from ptychopinn_torch_plugin.errors import InputError

ALL_GOOD = np.zeros((16, 18), dtype=np.bool_)


def stack(brightest: float, dtype: str = 'f8', patterns: int = 3) -> np.ndarray:
    counts = np.zeros((patterns, 16, 18), dtype=dtype)
    counts[:, 4, 5] = brightest
    return counts


@pytest.mark.parametrize(('shape', 'is_taken'), [
    ((1, 16, 4096), True), ((1, 4096, 16), True), ((1, 15, 16), False), ((1, 16, 15), False), ((1, 4097, 16), False),
    ((1, 16, 4097), False), ((0, 16, 16), False), ((16, 16), False), ((1, 1, 16, 16), False),
])  # fmt: skip
def test_the_shape_of_the_patterns(shape: tuple[int, ...], *, is_taken: bool) -> None:
    counts = np.broadcast_to(np.uint8(1), shape)
    if is_taken:
        assert check_pattern_stack(counts) is counts
    else:
        with pytest.raises(InputError, match='counts has shape|0 patterns|both sides must lie between 16 and 4096'):
            check_pattern_stack(counts)


def test_numbers_of_more_than_64_bits_are_refused() -> None:
    assert check_pattern_stack(stack(1.0, 'f8')).dtype == np.float64
    if np.dtype(np.longdouble).itemsize > 8:
        with pytest.raises(InputError, match='at most 64 bits'):
            check_pattern_stack(stack(1.0).astype(np.longdouble))


@pytest.mark.parametrize(('elements', 'ends'), [(1, [1, 2, 3, 4, 5]), (16 * 18 * 2, [2, 4, 6]), (16 * 18 * 3 - 1, [2, 4, 6]), (10**9, [10**9 // 288])])  # fmt: skip # noqa: E501
def test_blocks_hold_a_number_of_elements_at_most(
    elements: int, ends: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, 'BLOCK_ELEMENTS', elements)
    blocks = list(frame_blocks(np.zeros((5, 16, 18))))
    assert [block.stop for block in blocks] == ends
    assert [block.start for block in blocks] == [0, *ends[:-1]]
    assert list(frame_blocks(np.zeros((1, 0, 18)))) == [slice(0, elements)]


@pytest.mark.parametrize(('brightest', 'sentence'), [
    (0.0, 'zero in every pixel'), (0.99e-10, 'far below one photon'), (1e-10, None), (1e12, None),
    (1.001e12, r'values above 1e\+12, more photons than any detector counts, in 1 pixel outside'), (-1e-9, 'negative'),
])  # fmt: skip
def test_the_counts_of_the_brightest_pixel(brightest: float, sentence: str | None) -> None:
    if sentence is None:
        assert check_count_values(stack(brightest), ALL_GOOD, 'scan').size == 0
    else:
        with pytest.raises(InputError, match=sentence):
            check_count_values(stack(brightest), ALL_GOOD, 'scan')


@pytest.mark.parametrize(('brightest', 'is_reported'), [(0.99, True), (1.0, False), (5.0, False)])
def test_less_than_one_photon_is_reported(
    brightest: float, caplog: pytest.LogCaptureFixture, *, is_reported: bool
) -> None:
    with caplog.at_level(logging.WARNING):
        check_count_values(stack(brightest), ALL_GOOD, 'faint')
    assert ('faint: counts is nowhere larger than 0.99; if these' in caplog.text) == is_reported
    assert bool(caplog.records) == is_reported


def test_pixels_are_counted_and_the_first_is_named() -> None:
    counts = stack(5.0)
    counts[1, 7, 3:5] = np.nan
    with pytest.raises(InputError, match=r'\) in 2 pixels outside bad_pixels, first at \(y, x\) = \(7, 3\)'):
        check_count_values(counts, ALL_GOOD, 'scan')
    mask = ALL_GOOD.copy()
    mask[7, 3] = True
    with pytest.raises(InputError, match=r'in 1 pixel outside bad_pixels, first at \(y, x\) = \(7, 4\)'):
        check_count_values(counts, mask, 'scan')
    mask[7, 4] = True
    assert check_count_values(counts, mask, 'scan').size == 0


@pytest.mark.parametrize(('dtype', 'mark', 'is_refused'), [
    ('u1', 255, True), ('u1', 254, False), ('u2', 2**16 - 1, True), ('i1', 127, False), ('i2', 2**15 - 1, False),
    ('i4', 2**31 - 1, True), ('i4', 2**31 - 2, False), ('u4', 2**31 - 1, True), ('u4', 2**32 - 1, True),
    ('i8', 2**31 - 1, True), ('i8', 2**32 - 1, True), ('i8', 2**63 - 1, True), ('u8', 2**63 - 1, True),
    ('u8', 2**64 - 1, True), ('f4', 2.0**31, True), ('f8', 2.0**31 - 1, True), ('f8', 2.0**31, False),
    ('f8', 2.0**64, True), ('f2', 2.0**15, False), ('>i4', 2**31 - 1, True),
])  # fmt: skip
def test_the_marks_of_gaps(dtype: str, mark: float, *, is_refused: bool) -> None:
    counts = stack(1, dtype)
    counts[1, 9, 2] = mark
    if is_refused:
        with pytest.raises(InputError, match=rf'the value {int(mark)}, the mark of a gap .* \(9, 2\)'):
            check_count_values(counts, ALL_GOOD, 'scan')
        mask = ALL_GOOD.copy()
        mask[9, 2] = True
        assert check_count_values(counts, mask, 'scan').size == 0
    else:
        assert check_count_values(counts, ALL_GOOD, 'scan').size == 0


def test_empty_patterns_are_numbered(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, 'BLOCK_ELEMENTS', 2 * 16 * 18)
    counts = stack(5.0, patterns=5)
    counts[[2, 4]] = 0
    counts[2, 0, 0] = 7
    mask = ALL_GOOD.copy()
    mask[0, 0] = True
    assert check_count_values(counts, mask, 'star').tolist() == [2, 4]
    assert 'star: 2 of 5 patterns are empty (no photon in a good pixel), first number 2' in caplog.text


def test_masks_of_zeros_and_ones() -> None:
    assert not check_bad_pixels(None, (16, 18)).any()
    assert check_bad_pixels(None, (16, 18)).shape == (16, 18)
    mask = np.zeros((16, 18), dtype=np.int8)
    mask[3, 4] = 1
    assert np.argwhere(check_bad_pixels(mask, (16, 18))).tolist() == [[3, 4]]
    assert np.argwhere(check_bad_pixels(mask.astype(bool), (16, 18))).tolist() == [[3, 4]]
    for wrong in (-1, 2):
        mask[3, 4] = wrong
        with pytest.raises(InputError, match='is not a mask'):
            check_bad_pixels(mask, (16, 18))


def test_repeated_positions_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check_positions([[1, 2], [3, 4], [5, 6]], 3, 'scan')
        assert caplog.text == ''
        found = check_positions([[1, 2], [3, 4], [1, 2], [3, 4], [3, 5]], 5, 'scan')
    assert found.dtype == np.float64
    assert 'scan: 2 of 5 positions repeat another one exactly, first number 2: all are used' in caplog.text
    with pytest.raises(InputError, match='positions has 2 entries that are not finite, first number 1'):
        check_positions(np.array([[1, 2], [np.nan, np.inf], [1, np.inf]]), 3, 'scan')


def test_the_memory_of_object_and_patterns(monkeypatch: pytest.MonkeyPatch) -> None:
    positions = np.array([[0.0, 10.0], [300.0, 50.0], [100.0, 210.0]])
    needed = 100 * (300 + 16) * (200 + 18) + 64 * 3 * 16 * 18
    monkeypatch.setattr(validation, 'physical_memory', lambda: needed)
    check_memory(positions, (16, 18), 3)
    monkeypatch.setattr(validation, 'physical_memory', lambda: needed - 1)
    size = f'{needed / 2**30:.4g}'
    with pytest.raises(InputError, match=rf'316 x 218 pixels, which needs about {size} GiB .*has {size}\)'):
        check_memory(positions, (16, 18), 3)


def test_the_axes_of_probe_and_object() -> None:
    wave = np.ones((16, 18), dtype=np.complex64)
    for shape, modes in (((16, 18), 1), ((2, 16, 18), 2), ((3, 2, 16, 18), 2)):
        assert check_probe(np.broadcast_to(wave, shape), (16, 18), 'scan').shape == (modes, 16, 18)
    for wrong in (wave[0], np.broadcast_to(wave, (1, 1, 1, 16, 18)), wave[None, :0]):
        with pytest.raises(InputError, match='probe has shape'):
            check_probe(wrong, (16, 18), 'scan')
    for shape in ((16, 18), (1, 16, 18)):
        assert check_object(np.broadcast_to(wave, shape)).shape == (16, 18)
    for wrong in (wave[0], np.broadcast_to(wave, (1, 1, 16, 18)), wave[:0], wave[None, :, :0]):
        with pytest.raises(InputError, match=r'object_guess has shape .*: give \(height, width\)'):
            check_object(wrong)
    with pytest.raises(InputError, match='object_guess has 2 layers'):
        check_object(np.broadcast_to(wave, (2, 16, 18)))
