"""The files of the metrics beside the product, and the verdict."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ptychopinn_torch_plugin.config import parse_config
from ptychopinn_torch_plugin.engines.pipeline import refine
from ptychopinn_torch_plugin.metrics import FOLDER, plots, ring_correlation, verdict, write_metrics
from ptychopinn_torch_plugin.metrics.output import numbers
from ptychopinn_torch_plugin.metrics.run import Run
from ptychopinn_torch_plugin.metrics.verdict import light_of
from ptychopinn_torch_plugin.types import Credibility, Reconstruction, ReconstructionMetrics
from tests.helpers.scans import make_scan, smooth_object


@pytest.fixture(scope='module')
def refined() -> Reconstruction:
    scan, _ = make_scan(rows=4, margin=3)
    return refine(scan, parse_config({'refinement': {'refine_epochs': 4}, 'inference': {'threads': 1}}))


def metrics_of(reconstruction: Reconstruction) -> ReconstructionMetrics:
    assert reconstruction.metrics is not None
    return reconstruction.metrics


def with_frc(reconstruction: Reconstruction) -> Reconstruction:
    truth = smooth_object((40, 40), 1)
    frc = ring_correlation(truth, truth + 0.1 * np.random.default_rng(1).normal(size=(40, 40)), np.ones((40, 40)))
    return replace(reconstruction, metrics=replace(metrics_of(reconstruction), frc=frc))


@pytest.mark.parametrize(('has_frc', 'pixel_m'), [(False, None), (True, (2e-8, 1e-8))])
def test_numbers_maps_and_plot(
    refined: Reconstruction, has_frc: bool, pixel_m: tuple[float, float] | None, tmp_path: Path
) -> None:
    result = with_frc(refined) if has_frc else refined
    metrics = metrics_of(result)
    assert write_metrics(tmp_path, result, pixel_m)
    folder = tmp_path / FOLDER
    assert sorted(file.name for file in folder.iterdir()) == ['judgement.json', 'judgement.png', 'maps.npz']
    document = json.loads((folder / 'judgement.json').read_text())
    assert document['r_factor'] == metrics.r_factor
    assert document['verdict'] == verdict(metrics)
    assert document['excess'] == metrics.reduced_chi_square
    keys = ['r_factor', 'noise_r_factor', 'misfit', 'excess', 'scale', 'covered_share', 'overlap', 'uncertainty']
    assert list(document)[: len(keys)] == keys, 'scripts of users read these'
    assert ('resolution_m' in document) == (has_frc and pixel_m is not None)
    if metrics.frc is not None and metrics.frc.resolution_px is not None and pixel_m is not None:
        assert document['resolution_m'] == metrics.frc.resolution_px * 2e-8
    with np.load(folder / 'maps.npz', allow_pickle=False) as maps:
        np.testing.assert_array_equal(maps['uncertainty_map'], metrics.uncertainty_map)
        assert ('ring_correlation' in maps) == has_frc
    assert (folder / 'judgement.png').read_bytes().startswith(b'\x89PNG')


def test_the_plot_shows_the_run(refined: Reconstruction, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scan, date, settings, probe, movement of the positions and losses are in it; what is not covered is no data."""
    figure = plots.new_figure(18.0, 13.2)
    monkeypatch.setattr(plots, 'new_figure', lambda *_: figure)
    scan = replace(make_scan(rows=4, margin=3)[0], name='$star$')
    config = parse_config({'refinement': {'refine_epochs': 4}})
    run = Run('refine', scan, config, datetime(2026, 11, 25, 3, 0, tzinfo=UTC), 83.0)
    moved = replace(refined, positions=scan.positions + np.array([[0.0, 2.0], [0.0, -2.0]])[np.arange(scan.size) % 2])
    content = plots.draw_metrics(moved, metrics_of(refined), (2e-8, 2e-8), run)
    words = figure.get_suptitle() + figure.get_supxlabel()
    for word in ('star', 'Refinement without a model', '25 November 2026, 03:00', '1 min 23 s', 'refine_epochs = 4'):
        assert word in words
    titles: dict[str, Any] = {axis.get_title(): axis for axis in figure.axes}
    for title in ('amplitude', 'probe after: amplitude, 1 mode', 'probe before: amplitude, 1 mode'):
        assert titles[title].images[0].get_array().ndim == 2
    assert 'losses of the refinement' in titles
    arrows = next(title for title in titles if title.startswith('positions: movement'))
    assert titles[arrows].collections
    shown = titles['amplitude'].images[0].get_array()
    rows, columns = plots.bounding_box(refined.coverage)
    np.testing.assert_array_equal(~np.ma.getmaskarray(shown), refined.coverage[slice(*rows), slice(*columns)])
    assert any(text.get_text().endswith('nm') for text in titles['amplitude'].texts), 'the scale bar'
    picture = Image.open(io.BytesIO(content))
    assert round(picture.info['dpi'][0]) >= 150
    assert picture.width == round(figure.get_figwidth() * 150)


def test_a_reconstruction_without_metrics_writes_nothing(refined: Reconstruction, tmp_path: Path) -> None:
    assert not write_metrics(tmp_path, replace(refined, metrics=None))
    assert not list(tmp_path.iterdir())


def test_numbers_that_are_not_known_are_null(refined: Reconstruction, tmp_path: Path) -> None:
    dark = replace(metrics_of(refined), uncertainty=float('nan'), noise_r_factor=0.0)
    empty = np.full_like(dark.uncertainty_map, np.nan)
    dark = replace(dark, uncertainty_map=empty, object_r_map=empty, photons_map=np.zeros_like(empty))
    nothing = replace(refined, metrics=dark, coverage=np.zeros_like(refined.coverage))
    assert write_metrics(tmp_path, nothing)
    assert json.loads((tmp_path / FOLDER / 'judgement.json').read_text())['uncertainty'] is None


def test_a_full_disk_is_a_warning(refined: Reconstruction, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / FOLDER).touch()
    with caplog.at_level(logging.WARNING):
        assert not write_metrics(tmp_path, refined)
    assert 'not complete' in caplog.text


@pytest.mark.parametrize(
    ('error', 'words'),
    [
        (MemoryError(), 'are not complete: there is not enough memory'),
        (ImportError('no module', name='matplotlib'), 'have no plot. matplotlib is needed for this'),
    ],
)
def test_a_plot_that_fails_is_a_warning(
    refined: Reconstruction,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    words: str,
) -> None:
    def fail(*_: float) -> None:
        raise error

    monkeypatch.setattr(plots, 'new_figure', fail)
    assert not write_metrics(tmp_path, refined)
    assert words in caplog.text
    assert sorted(file.name for file in (tmp_path / FOLDER).iterdir()) == ['judgement.json', 'maps.npz']


def test_verdict(refined: Reconstruction) -> None:
    metrics = replace(metrics_of(refined), reduced_chi_square=2.4, covered_share=0.98, overlap=15.79)
    assert verdict(replace(metrics, credibility=None)).startswith(
        'Not verified. Misfit 2.4 (1 is photon noise): errors other than photon noise are of about its size;'
    )
    wrong = Credibility(0.1, 0.02, 0.05, 0.5, 'red', 'reversed', 9.0, 'Wrong sign.', 'object_r_map', 'reverse it')
    judged = replace(metrics, credibility=wrong)
    assert verdict(judged).startswith('Red. Wrong sign. See object_r_map; reverse it. Misfit 2.4')
    document = numbers(judged)
    assert document['colour'] == 'red'
    assert document['cause'] == 'reversed'
    assert document['setting'] == 'reverse it'
    assert verdict(metrics).endswith('98 % of the object grid covered, 15.8 positions per pixel.')
    for misfit, light, words in (
        (0.97, 'green', 'photon noise explains the difference'),
        (4.0, 'yellow', 'are of about its size'),
        (4.1, 'red', 'dominate'),
        (float('nan'), None, 'the misfit is not known'),
    ):
        assert light_of(misfit) == light
        assert words in verdict(replace(metrics, reduced_chi_square=misfit))
    frc = metrics_of(with_frc(refined)).frc
    assert frc is not None
    for resolution, words in (
        (3.86, 'resolution 3.9 pixels'),
        (2.0, 'limited by the pixel size'),
        (None, 'no resolution'),
    ):
        assert words in verdict(replace(metrics, frc=replace(frc, resolution_px=resolution)))


def test_importing_the_package_imports_no_large_library() -> None:
    code = (
        'import sys, ptychopinn_torch_plugin.metrics\n'
        "heavy = {'torch', 'matplotlib', 'ptychodus', 'lightning'} & set(sys.modules)\n"
        'assert not heavy, heavy'
    )
    subprocess.run([sys.executable, '-c', code], check=True)
