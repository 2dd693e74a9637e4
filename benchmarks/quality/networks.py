"""Networks trained on simulated scans, judged on scans they have never seen."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ptychopinn_torch_plugin.config import Config
from ptychopinn_torch_plugin.demo.simulate import ScanPlan
from ptychopinn_torch_plugin.engines.pipeline import reconstruct, refine
from ptychopinn_torch_plugin.observer import SilentObserver
from ptychopinn_torch_plugin.storage.model_file import MODEL_FILE, TrainedModel, load_model
from ptychopinn_torch_plugin.training.run import train
from ptychopinn_torch_plugin.types import Reconstruction

from .scans import KNOWN, make_plan
from .table import Gallery, Line, Simulated, configure, is_reached, pair_text, timed

ALONE: dict[str, object] = {'refine_epochs': 0}

TRAINING_SCANS = tuple(
    ScanPlan(seed=100 + number, sample=sample)
    for number, sample in enumerate(('discs', 'texture', 'discs', 'lines', 'discs'))
)
"""What the network of several scans learns from; no star is among them."""
UNSEEN_DISCS = ScanPlan(seed=201)
UNSEEN_STAR = ScanPlan(seed=202, sample='star')
LARGE = ScanPlan(seed=203, rows=71, columns=71)
SPARSE = ScanPlan(seed=204, rows=11, columns=11, step_px=16.0)
SPARSELY_LIT = 0.1
"""Where positions hardly overlap, light between them is faint; what has a tenth of the typical light is scored."""
SPARSE_TRAINING = tuple(
    ScanPlan(seed=300 + number, sample=sample, rows=11, columns=11, step_px=16.0)
    for number, sample in enumerate(('discs', 'texture', 'discs', 'lines', 'discs'))
)
LINES = ScanPlan(
    seed=205, sample='lines', rows=12, columns=12, step_px=10.0, jitter_px=2.0, pattern_shape=(128, 128), photons=1e9
)
"""The paper's pattern: an amplitude object of random lines, 128 pixels, as good as no noise."""
LINES_TRAINING = tuple(replace(LINES, seed=400 + number) for number in range(3))


@dataclass(frozen=True)
class Course:
    """What a network is trained on, and how."""

    key: str
    plans: tuple[ScanPlan, ...]
    tree: dict[str, dict[str, object]]


UNROLLED = Course(
    'unrolled',
    TRAINING_SCANS,
    {'model': {'steps': 10}, 'inference': {'steps': 10}, 'training': {'epochs': 20}, 'refinement': ALONE},
)
SPARSE_UNROLLED = Course('sparse', SPARSE_TRAINING, {'model': {'steps': 10}, 'training': {'epochs': 40}})


PATCH = Course(
    'patch',
    TRAINING_SCANS,
    {
        'data': {'group_size': 4, 'neighbor_count': 8},
        'model': {'generator': 'patch', 'steps': 12},
        'training': {'epochs': 4, 'learning_rate': 1e-3},
        'refinement': ALONE,
    },
)


class School:
    """Trains networks, once each, and keeps them."""

    def __init__(self, output: Path) -> None:
        self._output = output

    def scan(self, plan: ScanPlan) -> Simulated:
        """The scan of a plan, simulated if need be."""
        shape = f'{plan.rows}x{plan.columns}x{plan.pattern_shape[0]}'
        return Simulated.read(make_plan(plan, self._output / 'scans' / f'{plan.sample}-{plan.seed}-{shape}'))

    def graduate(self, course: Course) -> tuple[TrainedModel, Config, float | None]:
        """The trained network, its configuration, and the seconds of training (None where it was there)."""
        folder = self._output / 'models' / course.key
        # The probes are the true ones, and the untrained lines have them too: there is nothing to learn.
        training = {'probe_trainable': False, **course.tree.get('training', {})}
        config = configure({**course.tree, 'training': training})
        seconds = None
        if not (folder / MODEL_FILE).is_file():
            scans = [self.scan(plan).scan for plan in course.plans]
            tic = time.perf_counter()
            train(scans, config, folder)
            seconds = time.perf_counter() - tic
        return load_model(folder / MODEL_FILE), config, seconds


def transfer(school: School, output: Path) -> Iterator[Line]:
    """The unrolled network alone on scans it has never seen, beside its own steps before training."""
    model, config, seconds = school.graduate(UNROLLED)
    for plan, name, reach in ((UNSEEN_DISCS, 'discs', (0.966, 0.992)), (UNSEEN_STAR, 'star', (0.960, 0.980))):
        simulated = school.scan(plan)
        title = f'unseen {name}, 10 steps'
        gallery = Gallery(simulated, title)
        plain = _plain(simulated, 10)
        yield Line(
            title, 'solver from flat, 10 steps', pair_text(gallery.add('solver', simulated.product(plain))), None
        )
        result = reconstruct(simulated.scan, model, config)
        found = gallery.add('network', simulated.product(result))
        method = f'unrolled network alone, trained on {len(UNROLLED.plans)} scans'
        yield Line(title, method, pair_text(found), seconds, f'{pair_text(reach)} in 300 s', is_reached(found, reach))
        gallery.draw(output / f'unseen-{name}.png')


def patch(school: School, output: Path) -> Iterator[Line]:
    """The patch network on an unseen object, beside its physics before training."""
    untrained = {**PATCH.tree, 'training': {**PATCH.tree['training'], 'epochs': 1, 'learning_rate': 1e-12}}
    simulated = school.scan(UNSEEN_DISCS)
    title = 'patch network, unseen discs, C_g = 4'
    gallery = Gallery(simulated, title)
    for course, method in (
        (Course('patch-untrained', (UNSEEN_DISCS,), untrained), '12 physics steps, untrained'),
        (PATCH, f'trained on {len(PATCH.plans)} scans'),
    ):
        model, config, seconds = school.graduate(course)
        result = reconstruct(simulated.scan, model, config)
        found = gallery.add('network', simulated.product(result))
        reach, reached = (0.85, 0.90), None if course is not PATCH else is_reached(found, (0.85, 0.90))
        shown = pair_text(reach) if course is PATCH else ''
        yield Line(title, method, pair_text(found), seconds if course is PATCH else None, shown, reached)
    gallery.draw(output / 'patch.png')


def warm_start(school: School) -> Iterator[Line]:
    """Time to .96/.985 on a large unseen scan: network and a few plain steps, against the solver from flat."""
    model, config, _ = school.graduate(UNROLLED)
    simulated = school.scan(LARGE)
    after = config.model_copy(
        update={'refinement': configure({'refinement': KNOWN | {'refine_epochs': 12}}).refinement}
    )
    flat = configure({'refinement': KNOWN | {'refine_epochs': 30}})
    ours = _time_to(simulated, lambda watch: reconstruct(simulated.scan, model, after, watch))
    theirs = _time_to(simulated, lambda watch: refine(simulated.scan, flat, watch))
    title = f'{LARGE.positions:,} unseen positions, time to .960 / .985'
    yield Line(title, 'solver from flat', 'there' if theirs else 'not within 30 epochs', theirs)
    ratio = theirs / ours if theirs and ours else float('nan')
    yield Line(
        title,
        'network of several scans, then plain steps',
        f'{ratio:.2f} times as fast',
        ours,
        '1.5 times',
        ratio >= 1.5,
    )


def sparse(school: School, output: Path) -> Iterator[Line]:
    """Little overlap: network and refinement against the solver alone."""
    model, config, seconds = school.graduate(SPARSE_UNROLLED)
    simulated = school.scan(SPARSE)
    gallery = Gallery(simulated, 'little overlap', SPARSELY_LIT)
    plan = configure({'refinement': KNOWN | {'likelihood': 'auto', 'refine_epochs': 60}})
    solver, solver_seconds = timed(lambda: refine(simulated.scan, plan))
    alone = gallery.add('solver', simulated.product(solver))
    share = linear_overlap(simulated, SPARSE.step_px)
    title = f'sparse scan, linear overlap {100 * share:.0f} %'
    yield Line(title, 'solver alone, 60 epochs', pair_text(alone), solver_seconds)
    both = config.model_copy(update={'refinement': plan.refinement})
    result, both_seconds = timed(lambda: reconstruct(simulated.scan, model, both))
    found = gallery.add('network, refinement', simulated.product(result))
    reach = (alone[0] + 0.05, alone[1] + 0.05)
    text = pair_text(found) + ('' if seconds is None else f' (trained in {seconds:.0f} s)')
    yield Line(title, 'network, then refinement', text, both_seconds, '.05 above the solver', is_reached(found, reach))
    gallery.draw(output / 'sparse.png')


def linear_overlap(simulated: Simulated, step_px: float) -> float:
    """``1 - step / diameter``, the diameter being that of a disc as large as the brightest nine tenths of power."""
    power = np.sort((np.abs(simulated.scan.probe) ** 2).sum(axis=0).ravel())[::-1]
    pixels = int(np.searchsorted(power.cumsum(), 0.9 * power.sum())) + 1
    return float(1 - step_px / (2 * np.sqrt(pixels / np.pi)))


def lines(school: School, output: Path) -> Iterator[Line]:
    """The paper's lines with one and with four positions per group."""
    for members, reach in ((1, 0.97), (4, 0.985)):
        tree: dict[str, dict[str, object]] = {
            'data': {'group_size': members, 'neighbor_count': max(members - 1, 8)},
            'training': {'epochs': 4},
            'inference': {'window_size': members, 'steps': 40},
            'refinement': ALONE,
        }
        model, config, seconds = school.graduate(Course(f'lines-{members}', LINES_TRAINING, tree))
        simulated = school.scan(LINES)
        result = reconstruct(simulated.scan, model, config)
        title = f"the paper's lines, {members} position{'s' if members > 1 else ''} per group, curved probe"
        gallery = Gallery(simulated, title)
        found = gallery.add('network', simulated.product(result))
        text = f'amplitude {found[0]:.3f}'
        yield Line(title, 'unrolled network alone', text, seconds, f'{reach:.3f}', round(found[0], 3) >= reach)
        gallery.draw(output / f'lines-{members}.png')


def robustness(school: School) -> Iterator[Line]:
    """Five seeds, three scans, 64 and 128 pixels, a short training each: nothing collapses."""
    for side in (64, 128):
        spreads, worst, ratios = [], 1.0, []
        for sample in ('discs', 'star', 'texture'):
            rows = 22 if side == 64 else 12
            plan = ScanPlan(
                seed=500, sample=sample, rows=rows, columns=rows, pattern_shape=(side, side), step_px=side / 13
            )
            simulated = school.scan(plan)
            scores = []
            for seed in range(5):
                tree: dict[str, dict[str, object]] = {
                    'training': {'epochs': 4, 'seed': seed},
                    'refinement': ALONE,
                }
                model, config, _ = school.graduate(Course(f'robust-{side}-{sample}-{seed}', (plan,), tree))
                result = reconstruct(simulated.scan, model, config)
                scores.append(simulated.scores(result))
                ratios.append(_contrast(result) / _contrast_of(simulated.truth.object_.get_layer(0), result.coverage))
            spreads.append(np.ptp(np.array(scores), axis=0).max())
            worst = min(worst, float(np.min(scores)))
        contrast = f'contrast {min(ratios):.2f} to {max(ratios):.2f} of the true one'
        text = f'spread {max(spreads):.3f}, worst SSIM {worst:.3f}, {contrast}'
        reached = max(spreads) < 0.03 and min(ratios) > 0.8
        yield Line(
            f'5 seeds, 3 scans, {side} pixels',
            'network alone, 4 epochs',
            text,
            None,
            'spread below .03',
            reached,
        )


def _contrast(result: Reconstruction) -> float:
    return _contrast_of(result.object_array, result.coverage)


def _contrast_of(array: npt.NDArray[np.complexfloating], where: npt.NDArray[np.bool_]) -> float:
    """Standard deviation over mean of the modulus: 0 is a flat image."""
    modulus = np.abs(array)[where]
    return float(modulus.std() / modulus.mean())


def _plain(simulated: Simulated, epochs: int) -> Reconstruction:
    return refine(simulated.scan, configure({'refinement': KNOWN | {'refine_epochs': epochs}}))


class _Watch(SilentObserver):
    """Keeps every preview with the second it came in."""

    def __init__(self) -> None:
        self._begun = time.perf_counter()
        self.seen: list[tuple[float, npt.NDArray[np.complex64]]] = []

    def on_preview(self, object_array: npt.NDArray[np.complex64]) -> None:
        """Keep it."""
        self.seen.append((time.perf_counter() - self._begun, object_array))


def _time_to(
    simulated: Simulated, run: Callable[[_Watch], Reconstruction], amplitude: float = 0.96, phase: float = 0.985
) -> float | None:
    """Seconds until both similarities are reached; None if they are not."""
    watch = _Watch()
    last = run(watch)
    for seconds, array in watch.seen:
        found = simulated.scores(replace(last, object_array=array))
        if found[0] >= amplitude and found[1] >= phase:
            return seconds
    return None
