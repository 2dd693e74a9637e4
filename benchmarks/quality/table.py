"""The lines of the table, and how a reconstruction is timed, scored and drawn."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from ptychodus.api.io import load_product
from ptychodus.api.product import Product
from ptychodus.api.reconstruct import ReconstructInput

from ptychopinn_torch_plugin.config import Config, parse_config
from ptychopinn_torch_plugin.data.io.product import product_from_reconstruction, scan_from_reconstruct_input
from ptychopinn_torch_plugin.data.io.workflow_folder import load_workflow_folder
from ptychopinn_torch_plugin.data.scan import RawScan
from ptychopinn_torch_plugin.demo.plots import Titled, draw_objects
from ptychopinn_torch_plugin.demo.simulate import TRUTH_FILE
from ptychopinn_torch_plugin.metrics import ScoredPair, compare_with_truth
from ptychopinn_torch_plugin.metrics.ground_truth import WELL_ILLUMINATED
from ptychopinn_torch_plugin.types import Reconstruction

HEAD = '| scan | method | result | seconds | reach | |\n| --- | --- | --- | --- | --- | --- |'

Make = Callable[[], Reconstruction]


def configure(tree: Mapping[str, Mapping[str, object]]) -> Config:
    """A configuration that uses as many threads as torch does here (``OMP_NUM_THREADS``)."""
    threads = {'threads': torch.get_num_threads()}
    sections = {name: {**tree.get(name, {}), **threads} for name in ('training', 'inference')}
    return parse_config({**tree, **sections})


@dataclass(frozen=True)
class Line:
    """A line of the table."""

    title: str
    method: str
    result: str
    seconds: float | None
    reach: str = ''
    reached: bool | None = None
    """None where there is nothing to reach, as for a line to compare with."""

    def __str__(self) -> str:
        """The line in Markdown."""
        verdict = '' if self.reached is None else 'reached' if self.reached else '**missed**'
        seconds = '' if self.seconds is None else f'{self.seconds:.1f}'
        return f'| {self.title} | {self.method} | {self.result} | {seconds} | {self.reach} | {verdict} |'


@dataclass(frozen=True, eq=False)
class Simulated:
    """A simulated scan, read from its folder."""

    folder: Path
    parameters: ReconstructInput
    scan: RawScan
    truth: Product

    @classmethod
    def read(cls, folder: Path) -> Simulated:
        """Read what :func:`~ptychopinn_torch_plugin.demo.simulate.simulate_scan` wrote."""
        parameters = load_workflow_folder(folder)
        truth = load_product(folder / TRUTH_FILE)
        return cls(folder, parameters, scan_from_reconstruct_input(parameters), truth)

    def product(self, reconstruction: Reconstruction) -> Product:
        """The reconstruction as a product of the host."""
        return product_from_reconstruction(self.parameters, reconstruction)

    def scores(self, reconstruction: Reconstruction) -> tuple[float, float]:
        """Structural similarity of amplitude and phase."""
        scores = compare_with_truth(self.truth, self.product(reconstruction)).scores
        return scores.amplitude_ssim, scores.phase_ssim


def timed(make: Make) -> tuple[Reconstruction, float]:
    """A reconstruction and the wall seconds it took."""
    tic = time.perf_counter()
    result = make()
    return result, time.perf_counter() - tic


class Gallery:
    """Collects objects of one scan and draws them side by side, the truth first."""

    def __init__(self, simulated: Simulated, title: str, well_illuminated: float = WELL_ILLUMINATED) -> None:
        self._simulated = simulated
        self._well_illuminated = well_illuminated
        self._title = title
        self._shown: list[Titled] = []

    def add(self, name: str, product: Product) -> tuple[float, float]:
        """Show a product, and return its amplitude and phase SSIM."""
        pair = self._compare(product)
        if not self._shown:
            self._shown.append(('truth', pair.truth))
        self._shown.append((name, pair.product))
        return pair.scores.amplitude_ssim, pair.scores.phase_ssim

    def score(self, product: Product) -> tuple[float, float]:
        """Return the amplitude and phase SSIM of a product that is not shown."""
        scores = self._compare(product).scores
        return scores.amplitude_ssim, scores.phase_ssim

    def draw(self, file: Path) -> None:
        """Write the PNG."""
        pixel = self._simulated.truth.object_.get_pixel_geometry()
        draw_objects(self._shown, (pixel.height_m, pixel.width_m), self._title, file)

    def _compare(self, product: Product) -> ScoredPair:
        return compare_with_truth(self._simulated.truth, product, self._well_illuminated)


def pair_text(pair: tuple[float, float]) -> str:
    """Two scores as they stand in the table."""
    return f'{pair[0]:.3f} / {pair[1]:.3f}'


def is_reached(found: tuple[float, float], reach: tuple[float, float]) -> bool:
    """Whether both scores, as they stand in the table, are as high as asked for."""
    return round(found[0], 3) >= reach[0] and round(found[1], 3) >= reach[1]


def mode_overlaps(
    truth: npt.NDArray[np.complexfloating], found: npt.NDArray[np.complexfloating]
) -> npt.NDArray[np.float64]:
    """``|<t_k, p_k>| / (|t_k| |p_k|)`` of each mode ``(M, H, W)``, after a common shift and ramp are removed.

    Both pass freely between probe and object. The shift is the one that registers the probes' intensities (to a
    fiftieth of a pixel), the ramp the one that the first modes differ by.
    """
    from scipy.ndimage import fourier_shift
    from skimage.registration import phase_cross_correlation

    shift, _, _ = phase_cross_correlation(
        (np.abs(truth) ** 2).sum(axis=0), (np.abs(found) ** 2).sum(axis=0), upsample_factor=50
    )
    moved = np.stack([np.fft.ifft2(fourier_shift(np.fft.fft2(mode), shift)) for mode in found])
    height, width = truth.shape[-2:]
    finer = 16
    spectrum = np.abs(np.fft.fft2(truth[0] * moved[0].conj(), s=(finer * height, finer * width)))
    peak = np.unravel_index(int(spectrum.argmax()), spectrum.shape)
    frequency_y, frequency_x = peak[0] / (finer * height), peak[1] / (finer * width)
    y, x = np.indices((height, width))
    ramped = moved * np.exp(2j * np.pi * (frequency_y * y + frequency_x * x))
    inner = np.abs((truth.conj() * ramped).sum(axis=(1, 2)))
    norms = np.linalg.norm(truth, axis=(1, 2)) * np.linalg.norm(ramped, axis=(1, 2))
    return np.asarray(inner / norms, dtype=np.float64)
