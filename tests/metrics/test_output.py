"""The files beside the product, and the verdict in words."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ptychopinn_torch_plugin.config import parse_config
from ptychopinn_torch_plugin.engines.pipeline import refine
from ptychopinn_torch_plugin.metrics import FOLDER, ring_correlation, verdict, write_judgement
from ptychopinn_torch_plugin.types import Reconstruction, ReconstructionMetrics
from tests.helpers.scans import make_scan, smooth_object


@pytest.fixture(scope='module')
def refined() -> Reconstruction:
    scan, _ = make_scan(rows=4, margin=3)
    return refine(scan, parse_config({'refinement': {'refine_epochs': 4}, 'inference': {'threads': 1}}))


def judgement_of(reconstruction: Reconstruction) -> ReconstructionMetrics:
    assert reconstruction.metrics is not None
    return reconstruction.metrics


def with_rings(reconstruction: Reconstruction) -> Reconstruction:
    truth = smooth_object((40, 40), 1)
    rings = ring_correlation(truth, truth + 0.1 * np.random.default_rng(1).normal(size=(40, 40)), np.ones((40, 40)))
    return replace(reconstruction, metrics=replace(judgement_of(reconstruction), frc=rings))


@pytest.mark.parametrize(('has_rings', 'pixel_m'), [(False, None), (True, (2e-8, 1e-8))])
def test_figures_maps_and_picture(
    refined: Reconstruction, has_rings: bool, pixel_m: tuple[float, float] | None, tmp_path: Path
) -> None:
    result = with_rings(refined) if has_rings else refined
    judgement = judgement_of(result)
    assert write_judgement(tmp_path, result, pixel_m)
    folder = tmp_path / FOLDER
    assert sorted(file.name for file in folder.iterdir()) == ['judgement.json', 'judgement.png', 'maps.npz']
    figures = json.loads((folder / 'judgement.json').read_text())
    assert figures['r_factor'] == judgement.r_factor
    assert figures['verdict'] == verdict(judgement)
    assert ('resolution_m' in figures) == (has_rings and pixel_m is not None)
    if judgement.frc is not None and judgement.frc.resolution_px is not None and pixel_m is not None:
        assert figures['resolution_m'] == judgement.frc.resolution_px * 2e-8
    with np.load(folder / 'maps.npz', allow_pickle=False) as maps:
        np.testing.assert_array_equal(maps['uncertainty_map'], judgement.uncertainty_map)
        assert ('ring_correlation' in maps) == has_rings
    assert (folder / 'judgement.png').read_bytes().startswith(b'\x89PNG')


def test_a_reconstruction_that_nobody_judged_leaves_nothing(refined: Reconstruction, tmp_path: Path) -> None:
    assert not write_judgement(tmp_path, replace(refined, metrics=None))
    assert not list(tmp_path.iterdir())


def test_figures_that_are_not_known_are_null(refined: Reconstruction, tmp_path: Path) -> None:
    dark = replace(judgement_of(refined), uncertainty=float('nan'), noise_r_factor=0.0)
    empty = np.full_like(dark.uncertainty_map, np.nan)
    dark = replace(dark, uncertainty_map=empty, object_r_map=empty, photons_map=np.zeros_like(empty))
    nothing = replace(refined, metrics=dark, coverage=np.zeros_like(refined.coverage))
    assert write_judgement(tmp_path, nothing)
    assert json.loads((tmp_path / FOLDER / 'judgement.json').read_text())['uncertainty'] is None


def test_a_full_disk_is_a_warning(refined: Reconstruction, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / FOLDER).touch()
    with caplog.at_level(logging.WARNING):
        assert not write_judgement(tmp_path, refined)
    assert 'not complete' in caplog.text


def test_verdict_says_what_the_figures_mean(refined: Reconstruction) -> None:
    judgement = replace(judgement_of(refined), r_factor=0.143, noise_r_factor=0.12, covered_share=0.98, overlap=15.79)
    assert verdict(judgement).startswith(
        'R-factor 0.143 (noise alone would give 0.120): the patterns are explained nearly down to photon noise;'
    )
    assert verdict(judgement).endswith('98 % of the object grid covered, 15.8 positions a pixel.')
    assert 'not down to' in verdict(replace(judgement, r_factor=0.4))
    assert 'explained down to' in verdict(replace(judgement, r_factor=0.121))
    rings = judgement_of(with_rings(refined)).frc
    assert rings is not None
    for resolution, words in ((3.86, 'resolution 3.9 pixels'), (2.0, 'the pixel grid'), (None, 'no resolution')):
        assert words in verdict(replace(judgement, frc=replace(rings, resolution_px=resolution)))


def test_the_package_is_light() -> None:
    code = (
        'import sys, ptychopinn_torch_plugin.metrics\n'
        "heavy = {'torch', 'matplotlib', 'ptychodus', 'lightning'} & set(sys.modules)\n"
        'assert not heavy, heavy'
    )
    subprocess.run([sys.executable, '-c', code], check=True)
