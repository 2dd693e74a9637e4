"""Objects with structure of several kinds, and their scans at any dose, without files."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from ptychodus.api.io import load_diffraction_data, load_product
from ptychodus.api.object import Object
from ptychodus.api.product import Product
from ptychodus.api.reconstruct import ReconstructInput, prepare_reconstruct_input
from ptychodus.api.simulate.diffraction import generate_diffraction_data
from scipy.ndimage import gaussian_filter, zoom
from skimage import data
from skimage.color import rgb2gray

from ptychopinn_torch_plugin.data.io.product import scan_from_reconstruct_input
from ptychopinn_torch_plugin.data.scan import RawScan
from ptychopinn_torch_plugin.demo.simulate import TRUTH_FILE, ScanPlan, simulate_scan

Image = npt.NDArray[np.float64]

OBJECTS = ('photograph', 'text', 'grass', 'star', 'fine')
"""'fine' is noise that is correlated over two pixels."""
BRIGHT = 1e6


@dataclass(frozen=True)
class CleanScan:
    """A scan of a known object: its truth, and its patterns without noise for one photon per pattern."""

    truth: Product
    given: Product
    patterns: npt.NDArray[np.float64]
    template: ReconstructInput

    def at(self, photons: float, seed: int) -> ReconstructInput:
        """Return the scan with ``photons`` per pattern where the object is transparent, and Poisson noise."""
        counts = np.random.default_rng(seed).poisson(self.patterns * photons).astype(np.uint32)
        return replace(self.template, diffraction_patterns=counts)

    def raw(self, photons: float, seed: int) -> RawScan:
        """Return :meth:`at` as a validated scan."""
        return scan_from_reconstruct_input(self.at(photons, seed))


def clean_scan(kind: str, seed: int, plan: ScanPlan | None = None) -> CleanScan:
    """Simulate the scan of an object.

    Args:
        kind: one of ``OBJECTS``, or a sample of :class:`~ptychopinn_torch_plugin.demo.simulate.ScanPlan`.
        seed: of the positions and of the part of the image.
        plan: geometry of the scan; 196 positions of 64 x 64 pixels by default.
    """
    own = kind in OBJECTS and kind != 'star'
    plan = replace(plan or ScanPlan(rows=14, columns=14), seed=seed, photons=BRIGHT, noise=False)
    with tempfile.TemporaryDirectory() as folder:
        simulate_scan(Path(folder), replace(plan, sample='star' if own else kind))
        truth = load_product(Path(folder) / TRUTH_FILE)
        given = load_product(Path(folder) / 'product.h5')
        patterns = load_diffraction_data(Path(folder) / 'diffraction.h5')
    if own:
        old = truth.object_
        transmission = _transmission(kind, seed, (old.height_px, old.width_px))
        truth = replace(truth, object_=Object(transmission[None], old.get_pixel_geometry(), old.get_center()))
    simulated = generate_diffraction_data(truth).get_patterns().astype(np.float64)
    if own:
        scale = _unitary_factor(truth, patterns.get_pixel_geometry().width_m)
        clean = simulated * scale / BRIGHT
    else:
        clean = patterns.get_patterns().astype(np.float64) / BRIGHT
    return CleanScan(truth, given, clean, prepare_reconstruct_input(patterns, given))


def _unitary_factor(truth: Product, detector_pixel_m: float) -> float:
    """Return what makes the counts of the host's simulator those of a unitary transform."""
    pixel = truth.probes.get_pixel_geometry()
    return detector_pixel_m / pixel.width_m * detector_pixel_m / pixel.height_m


def _transmission(kind: str, seed: int, shape: tuple[int, int]) -> npt.NDArray[np.complex128]:
    rng = np.random.default_rng(seed)
    if kind == 'fine':
        noise = gaussian_filter(rng.standard_normal((2, *shape)), sigma=(0, 1, 1), mode='wrap')
        noise /= noise.std()
        return np.asarray(np.clip(0.8 + 0.1 * noise[0], 0.3, 1.0) * np.exp(0.4j * noise[1]))
    first, second = {
        'photograph': (data.camera(), rgb2gray(data.astronaut())),
        'text': (data.text(), data.page()),
        'grass': (data.grass(), data.brick()),
    }[kind]
    amplitude, phase = (_part(np.asarray(image, dtype=np.float64), shape, rng) for image in (first, second))
    return np.asarray((0.6 + 0.4 * amplitude) * np.exp(-0.9j * phase))


def _part(image: Image, shape: tuple[int, int], rng: np.random.Generator) -> Image:
    """Return a part of ``image`` of ``shape``, magnified where it is too small, from 0 to 1."""
    factor = max(1.0, *(need / there for need, there in zip(shape, image.shape, strict=True)))
    if factor > 1:
        image = zoom(image, factor * 1.01, order=1)
    row, column = (rng.integers(0, there - need + 1) for need, there in zip(shape, image.shape, strict=True))
    part = image[row : row + shape[0], column : column + shape[1]]
    return np.asarray((part - part.min()) / np.ptp(part))
