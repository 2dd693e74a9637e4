"""The compiled kernels: they agree with the torch reference for every kind of scan."""

from __future__ import annotations

import logging
import math
import subprocess
import sys
from dataclasses import fields
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ptychopinn_torch_plugin.errors import MissingDependencyError
from ptychopinn_torch_plugin.physics.forward import PatternBatch, simulate
from ptychopinn_torch_plugin.physics.kernels import compiled
from ptychopinn_torch_plugin.physics.kernels.compiled import COMPILED
from ptychopinn_torch_plugin.physics.kernels.reference import REFERENCE
from ptychopinn_torch_plugin.physics.kernels.selection import choose_kernels
from ptychopinn_torch_plugin.physics.kernels.sums import (
    AmplitudeScales,
    Epoch,
    Gradients,
    Kernels,
    Patterns,
    RefinedQuantities,
    ResidualSums,
)
from ptychopinn_torch_plugin.physics.noise_models import total_deviance
from ptychopinn_torch_plugin.physics.photon_noise import PhotonNoise
from ptychopinn_torch_plugin.physics.preconditioner import low_frequency_filter
from ptychopinn_torch_plugin.physics.propagation import quadratic_phase

from .conftest import Setup, make_setup, probes_at, sides

ALL = RefinedQuantities(probe=True, positions=True, intensities=True)
NONE = RefinedQuantities(probe=False, positions=False, intensities=False)
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5}
SHAPES = [(16, 16), (11, 13), (12, 21), (40, 31)]
"""The last one has more pixels than the working space of the factors."""


class Experiment:
    """Epoch and patterns with a mask, a quadratic phase and intensities; rounded to ``dtype`` for every computation."""

    def __init__(self, setup: Setup, likelihood: str, refined: RefinedQuantities) -> None:
        shape = sides(setup.probe)
        generator = torch.Generator().manual_seed(8)
        other = setup.object_array + 0.3 * torch.randn(
            setup.object_array.shape, dtype=torch.complex128, generator=generator
        )
        amplitudes = simulate(other, setup.probes, setup.patch_origins).amplitudes[0]
        amplitudes[:, 1, 2:4] = 0.0  # pixels that caught no photon
        self.good = (torch.rand(shape, generator=generator) > 0.2).double()
        self.setup, self.likelihood, self.refined = setup, likelihood, refined
        self.amplitudes = amplitudes * self.good
        self.phase = quadratic_phase((2e-3, 3e-3), shape)
        self.intensities = torch.linspace(0.6, 1.5, len(amplitudes), dtype=torch.float64)

    def gradients(
        self, kernels: Kernels, real: torch.dtype, *, kept: bool = False, illuminated: bool = True
    ) -> Gradients:
        """Return the gradients in two batches; the probes at the positions are ``kept`` or computed."""
        # Rounded to single precision first, so that both precisions start from the same numbers.
        narrow = {torch.float32: torch.complex64, torch.float64: torch.complex128}
        setup = self.setup

        def rounded(tensor: Tensor) -> Tensor:
            single = tensor.to(torch.complex64 if tensor.is_complex() else torch.float32)
            return single.to(narrow[real] if tensor.is_complex() else real)

        epoch = Epoch(
            rounded(setup.object_array[0]),
            rounded(setup.probe),
            rounded(self.phase),
            rounded(self.good),
            self.likelihood,
            self.refined,
            illuminated,
        )
        total = Gradients.zeros(epoch, len(self.amplitudes))
        batches = []
        for first, last in pairwise((0, 2, len(self.amplitudes))):
            patterns = Patterns(
                first,
                rounded(self.amplitudes[first:last]),
                setup.patch_origins[0, first:last],
                rounded(setup.subpixel_shifts[0, first:last]),
                rounded(self.intensities[first:last]),
                None,
            )
            probes = kernels.shift_probes(epoch.probe, epoch.phase, patterns.shifts, patterns.intensities)
            batches.append(patterns._replace(probes=probes) if kept else patterns)
        kernels.add_gradients(epoch, batches, total)
        return total


def assert_agree(found: Gradients, expected: Gradients, tolerance: float) -> None:
    for field in fields(Gradients):
        one, two = getattr(found, field.name), getattr(expected, field.name)
        assert_near(one, two, tolerance)


@pytest.mark.parametrize('real', TOLERANCES, ids=str)
@pytest.mark.parametrize('likelihood', ['amplitude', 'poisson'])
@pytest.mark.parametrize('modes', [1, 3])
@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_gradients_agree_with_the_reference(
    shape: tuple[int, int], modes: int, likelihood: str, real: torch.dtype
) -> None:
    experiment = Experiment(make_setup(shape, modes=modes), likelihood, ALL)
    reference = experiment.gradients(REFERENCE, torch.float64)
    assert all(bool((getattr(reference, field.name) != 0).any()) for field in fields(Gradients))
    assert_agree(experiment.gradients(COMPILED, real), reference, TOLERANCES[real])


@pytest.mark.parametrize('real', TOLERANCES, ids=str)
@pytest.mark.parametrize('likelihood', ['amplitude', 'poisson'])
def test_a_fixed_probe(likelihood: str, real: torch.dtype) -> None:
    experiment = Experiment(make_setup((14, 17)), likelihood, NONE)
    reference = experiment.gradients(REFERENCE, torch.float64)
    for kept in (False, True):
        found = experiment.gradients(COMPILED, real, kept=kept, illuminated=not kept)
        assert bool((found.illumination == 0).all()) == kept
        found.illumination = reference.illumination
        assert_agree(found, reference, TOLERANCES[real])


@pytest.mark.parametrize('refined', [(True, False, False), (False, True, False), (False, False, True)], ids=str)
def test_single_quantities(refined: tuple[bool, bool, bool]) -> None:
    experiment = Experiment(make_setup((13, 12)), 'poisson', RefinedQuantities(*refined))
    found, expected = (experiment.gradients(kernels, torch.float64) for kernels in (COMPILED, REFERENCE))
    assert bool(expected.position_steps.any()) == refined[1]
    assert bool((expected.intensity_ratios != 1).any()) == refined[2]
    assert_agree(found, expected, 1e-10)


def test_the_deviance_of_bright_pixels_keeps_its_digits_in_single_precision() -> None:
    """A million counts and a model that is nearly right: the Poisson costs are 10^7, their difference is about 1."""
    generator = torch.Generator().manual_seed(1)
    amplitudes = 1e3 + torch.rand((8, 8), generator=generator, dtype=torch.float64)
    expected = (amplitudes + 0.5).square()
    good = torch.ones((8, 8), dtype=torch.float64)
    exact = total_deviance(expected, amplitudes, good, 'poisson')
    single = total_deviance(expected.float(), amplitudes.float(), good.float(), 'poisson')
    assert float(exact) == pytest.approx(64, rel=0.01)
    assert float(single) == pytest.approx(float(exact), rel=0.05)


@pytest.mark.parametrize('real', TOLERANCES, ids=str)
@pytest.mark.parametrize('count', [1, 5])
def test_object_updates_of_several_objects(count: int, real: torch.dtype) -> None:
    setup = make_setup((17, 19), positions=count)
    experiment = Experiment(setup, 'amplitude', NONE)
    complex_dtype = torch.complex64 if real == torch.float32 else torch.complex128
    objects = torch.cat([setup.object_array, setup.object_array.flip(-1)])

    def batch(real: torch.dtype, complex_dtype: torch.dtype) -> PatternBatch:
        amplitudes = torch.stack([experiment.amplitudes, experiment.amplitudes.roll(1, 0)])
        return PatternBatch(
            amplitudes.to(real),
            setup.probes.expand(2, *setup.probes.shape[1:]).to(complex_dtype).contiguous(),
            setup.patch_origins.expand(2, -1, -1),
            experiment.good.to(real),
        )

    expected, found = torch.zeros_like(objects), torch.ones_like(objects, dtype=complex_dtype)
    REFERENCE.add_object_update(objects, batch(torch.float64, torch.complex128), expected)
    COMPILED.add_object_update(objects.to(complex_dtype), batch(real, complex_dtype), found)
    largest = float(expected.abs().max())
    torch.testing.assert_close((found - 1).to(expected.dtype), expected, rtol=0, atol=TOLERANCES[real] * largest)


@pytest.mark.parametrize('real', TOLERANCES, ids=str)
@pytest.mark.parametrize('shape', [(20, 24), (17, 23)], ids=str)
def test_preconditioner_and_total_variation(shape: tuple[int, int], real: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(2)
    update, object_array = torch.randn((2, 3, *shape), dtype=torch.complex128, generator=generator)
    object_array[:, 2, 3:6] = 0.0  # opaque
    weight = torch.rand((3, *shape), dtype=torch.float64, generator=generator)
    gain = low_frequency_filter(shape, torch.device('cpu'))
    complex_dtype = torch.complex64 if real == torch.float32 else torch.complex128
    narrow = (update.to(complex_dtype), weight.to(real), object_array.to(complex_dtype))
    expected = REFERENCE.precondition(update, weight, object_array, gain.double())
    assert_near(COMPILED.precondition(*narrow, gain.to(real)), expected, TOLERANCES[real])

    duals = [torch.zeros(shape, dtype=torch.complex128) for _ in range(2)]
    own = [dual.to(complex_dtype, copy=True) for dual in duals]
    ratio = 0.05 + weight[0]
    for _ in range(2):  # the dual variable is kept
        expected = REFERENCE.proximal_point(object_array[0], ratio, duals[0], duals[1], 5)
        found = COMPILED.proximal_point(narrow[2][0], ratio.to(real), own[0], own[1], 5)
        assert_near(found, expected, TOLERANCES[real])
        for one, two in zip(own, duals, strict=True):
            assert_near(one, two, 10 * TOLERANCES[real])


@pytest.mark.parametrize('real', TOLERANCES, ids=str)
@pytest.mark.parametrize('shape', [(16, 24), (21, 27)], ids=str)
def test_input_and_correction_of_the_network(shape: tuple[int, int], real: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    grid = [-(-side // 8) * 4 for side in shape]
    object_array, direction = torch.randn((2, 2, *shape), dtype=torch.complex128, generator=generator)
    object_array[:, 2, 3:6] = 0.0  # opaque
    weight = torch.rand((2, *shape), dtype=torch.float64, generator=generator)
    memory, answer = (torch.randn((2, count, *grid), dtype=torch.float64, generator=generator) for count in (16, 24))
    complex_dtype = torch.complex64 if real == torch.float32 else torch.complex128
    narrow = (object_array.to(complex_dtype), direction.to(complex_dtype), weight.to(real), memory.to(real))
    expected = REFERENCE.network_input(object_array, direction, weight, memory, 2)
    assert_near(COMPILED.network_input(*narrow, 2), expected, TOLERANCES[real])
    pair = REFERENCE.network_correction(object_array, weight, answer.clone(), memory, 2)
    found = COMPILED.network_correction(narrow[0], narrow[2], answer.to(real, copy=True), narrow[3], 2)
    for one, two in zip(found, pair, strict=True):
        assert_near(one, two, TOLERANCES[real])


@pytest.mark.parametrize('photons', [10.0, 1e6])
@pytest.mark.parametrize('modes', [1, 3])
@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_residuals(shape: tuple[int, int], modes: int, photons: float) -> None:
    """Pixels lie in the tables of the moments, above them, and far from the mean."""
    setup = make_setup(shape, modes=modes)
    experiment = Experiment(setup, 'amplitude', NONE)
    factor = math.sqrt(photons / float(experiment.amplitudes.square().mean()))
    batch = PatternBatch(
        (factor * experiment.amplitudes[None]).float(),
        (factor * setup.probes).to(torch.complex64),
        setup.patch_origins,
        experiment.good.float(),
    )
    object_array = setup.object_array[0].to(torch.complex64)
    scales = AmplitudeScales(0.9, 1.1, PhotonNoise(0.9 / 1.1, torch.device('cpu')))
    found, expected = (
        ResidualSums.zeros((object_array.shape[0], object_array.shape[1]), shape, object_array.device) for _ in range(2)
    )
    COMPILED.add_residuals(object_array, batch, scales, found)
    REFERENCE.add_residuals(object_array, batch, scales, expected)
    for one, two in zip(
        (*found.maps, *found.detector, *found.totals),
        (*expected.maps, *expected.detector, *expected.totals),
        strict=True,
    ):
        assert float(two.abs().max()) > 0
        assert_near(one, two, 2e-5)


def assert_near(found: Tensor, expected: Tensor, tolerance: float) -> None:
    largest = float(expected.abs().max())
    torch.testing.assert_close(found.to(expected.dtype), expected, rtol=0, atol=tolerance * largest)


def test_what_is_not_finite_stays_visible() -> None:
    """Fast arithmetic must not hide a divergence: it is recognised by the deviance."""
    for value in (float('nan'), float('inf')):
        setup = make_setup((16, 16), modes=1)
        setup.object_array[0, 12, 12] = value
        for likelihood in ('amplitude', 'poisson'):
            found = Experiment(setup, likelihood, ALL).gradients(COMPILED, torch.float32)
            assert not bool(torch.isfinite(found.deviance))


@pytest.mark.parametrize('move', [(-40, 0), (0, 40)], ids=str)
def test_a_patch_outside_the_object_is_refused(move: tuple[int, int]) -> None:
    setup = make_setup((16, 16))
    setup.patch_origins[0, 1] += torch.tensor(move)
    amplitudes = torch.ones((5, 16, 16), dtype=torch.float64)
    batch = PatternBatch(amplitudes[None], setup.probes, setup.patch_origins, torch.ones_like(amplitudes[0]))
    with pytest.raises(IndexError, match='beyond the object array'):
        COMPILED.add_object_update(setup.object_array, batch, torch.zeros_like(setup.object_array))
    with pytest.raises(IndexError, match='beyond the object array'):
        COMPILED.add_illumination(setup.probes, setup.patch_origins, torch.zeros_like(setup.object_array.real))


def test_the_choice() -> None:
    cpu = torch.device('cpu')
    assert choose_kernels('torch', cpu) is REFERENCE
    assert choose_kernels('auto', cpu) is choose_kernels('numba', cpu) is COMPILED
    for choice in ('auto', 'numba', 'torch'):
        assert choose_kernels(choice, torch.device('meta')) is REFERENCE


def test_without_numba_the_reference_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    from ptychopinn_torch_plugin.physics.kernels import selection

    selection._compiled.cache_clear()
    monkeypatch.setitem(sys.modules, 'ptychopinn_torch_plugin.physics.kernels.compiled', None)
    found = choose_kernels('auto', torch.device('cpu'))
    assert found._replace(description='torch') == REFERENCE
    assert 'cannot be imported' in found.description
    with pytest.raises(MissingDependencyError, match=r'pip install numba.*"auto"'):
        choose_kernels('numba', torch.device('cpu'))


def test_a_cache_that_cannot_be_written_costs_time_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A full disk: every function fails once, when it is saved, and then runs."""
    calls: list[None] = []

    def run_all() -> None:
        calls.append(None)
        if len(calls) < 4:
            raise OSError(28, 'No space left on device')

    monkeypatch.setattr(compiled, '_run_all', run_all)
    with caplog.at_level(logging.WARNING):
        compiled.compile_all()
    assert len(calls) == 4
    assert 'No space left' in caplog.text


def test_no_cache_folder_at_all(tmp_path: Path) -> None:
    """On a read-only file system, in a process without a home, functions compile all the same."""
    source = tmp_path / 'double.py'
    source.write_text(
        'import sys\n'
        f'sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n'
        'import numba.core.caching as caching\n'
        'for item in vars(caching).values():\n'
        '    if hasattr(item, "_locator_classes"):\n'
        '        item._locator_classes = []\n'
        'from ptychopinn_torch_plugin.physics.kernels.compilation import compiled\n'
        'print(compiled(lambda value: 2 * value)(21))\n'
    )
    done = subprocess.run([sys.executable, str(source)], capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.strip() == '42', done.stderr


def test_probes_at_positions_and_their_illumination() -> None:
    setup = make_setup((15, 18))
    phase = quadratic_phase((2e-3, 3e-3), (15, 18))
    expected = probes_at(setup.probe, setup.subpixel_shifts, phase)
    ones = torch.ones(len(expected[0]), dtype=torch.float64)
    assert_near(COMPILED.shift_probes(setup.probe, phase, setup.subpixel_shifts[0], ones), expected[0], 1e-12)
    found, light = torch.zeros((2, *setup.object_array.real.shape), dtype=torch.float64)
    REFERENCE.add_illumination(expected, setup.patch_origins, light)
    COMPILED.add_illumination(expected, setup.patch_origins, found)
    assert_near(found, light, 1e-12)
