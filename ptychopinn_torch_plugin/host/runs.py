"""What the reconstructors share: a run in the worker, its progress, and products at a pace the window can follow."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ptychodus.api.reconstruct import ReconstructInput, Reconstructor, ReconstructOutput

from ..data.io.product import product_from_reconstruction, scan_from_reconstruct_input, with_object
from ..worker import messages
from ..worker.job import Job, JobKind, open_job, read_preview, read_result
from ..worker.parent import run_job
from .entry_point import HostRun
from .settings import PtychoPINNSettings

if TYPE_CHECKING:
    from ..config import Config
    from ..types import Reconstruction

LOGGER_NAME: Final = 'ptychopinn_torch_plugin'

_YIELD_INTERVAL_S: Final = 0.5
"""Between two values yielded for the progress bar alone; each costs the window a redraw."""

_SHOW_INTERVAL_S: Final = 1.0
"""Least time between two products shown; the host itself looks for news once a second."""

_SHOW_PATIENCE_S: Final = 10.0
"""Where nothing is shown (no window), a product is yielded so often all the same: only then Stop is looked at."""

logger = logging.getLogger(LOGGER_NAME)


class WorkerReconstructor(Reconstructor):
    """A reconstructor whose work is done by the worker; the base of those with and without a model."""

    def __init__(self, name: str, settings: PtychoPINNSettings) -> None:
        self._name = name
        self._settings = settings
        self._host_run: HostRun | None = None
        self._progress = Progress()

    @property
    def name(self) -> str:
        """Name in the window and in settings files."""
        return self._name

    def get_progress_goal(self) -> int:
        """Units of work of the present run, at least 1 (the host hides Stop while there is no goal)."""
        return self._progress.goal

    @contextmanager
    def begin_host_run(self, run: HostRun) -> Iterator[None]:
        """Know about the host's call while it lasts; the input it holds is released afterwards."""
        self._host_run = run

        try:
            yield
        finally:
            self._host_run = None

    @contextmanager
    def run(self, what: str) -> Iterator[None]:
        """Start with fresh progress; say in the reconstructor's own log why a run failed, the window shows no other."""
        self._progress = Progress()

        try:
            yield
        except Exception as error:
            logger.error('%s failed: %s', what, error)
            raise

    def hear(self, job: Job) -> Generator[messages.Message, None, None]:
        """Run ``job`` in the worker and yield what is worth the host's attention; closing this ends the worker."""
        return listen(run_job(job), self._progress)

    def products(
        self, parameters: ReconstructInput, kind: JobKind, config: Config, model_file: Path | None
    ) -> Iterator[ReconstructOutput]:
        """Run a reconstruction in the worker and yield its products, the result last.

        Where the host shows intermediate products, they are previews (or the product so far, so that the host gets to
        look at Stop), no more than the window can show. Where it writes every product to a file, they are those that
        ``batch_interval`` asks for, and the judgement goes beside them. Where nothing is known about the host, only
        the result is yielded.
        """
        host = self._host_run
        is_batch = host is not None and host.writes_intermediate_products
        pace = None if host is None or is_batch else Pace(host.call_when_shown)
        file_interval = config.inference.batch_interval if is_batch else 0

        if pace is None:
            config = _with_preview_interval(config, file_interval)

        scan = scan_from_reconstruct_input(parameters)
        product = parameters.product
        pixel = product.object_.get_pixel_geometry()
        pixel_m = float(pixel.height_m), float(pixel.width_m)
        newest: Path | None = None

        with (
            open_job(
                kind,
                [scan],
                config,
                output_folder=None if host is None else host.output_folder,
                model_file=model_file,
                pixel_m=pixel_m,
                keeps_previews=file_interval > 0,
            ) as job,
            closing(self.hear(job)) as received,
        ):
            for message in received:
                if isinstance(message, messages.Preview):
                    newest = message.path

                if file_interval and newest is not None:
                    preview = read_preview(newest)
                    newest.unlink()
                    newest = None

                    if preview is not None:
                        yield ReconstructOutput(with_object(product, preview), self._progress.done)

                if pace is not None and pace.is_due():
                    preview, newest = None if newest is None else read_preview(newest), None
                    product = product if preview is None else with_object(product, preview)
                    yield ReconstructOutput(product, self._progress.done)
                    pace.begin()

            reconstruction = read_result(job.folder)

        _log_resolution(reconstruction, pixel_m)
        yield ReconstructOutput(product_from_reconstruction(parameters, reconstruction), self._progress.finish())


class Progress:
    """Work done and to do in one run."""

    def __init__(self) -> None:
        self.done = 0
        self.goal = 1

    def update(self, message: messages.Progress) -> None:
        """Take over what the worker reports."""
        self.goal = max(message.goal, 1)
        self.done = min(max(message.done, 0), self.goal)

    def finish(self) -> int:
        """Reach the goal and return it."""
        self.done = self.goal
        return self.goal


class Pace:
    """When the next product may be yielded: the window must have shown the last one, and had as long for its user."""

    def __init__(
        self, call_when_shown: Callable[[Callable[[], None]], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._call_when_shown = call_when_shown
        self._clock = clock
        self._next = clock()

    def is_due(self) -> bool:
        """Whether the window has had its time."""
        return self._clock() >= self._next

    def begin(self) -> None:
        """Count from now on: a product was handed to the window."""
        begun = self._clock()
        self._next = begun + _SHOW_PATIENCE_S

        def shown() -> None:
            now = self._clock()
            self._next = now + max(_SHOW_INTERVAL_S, now - begun)

        self._call_when_shown(shown)


def listen(
    received: Generator[messages.Message, None, None],
    progress: Progress,
    clock: Callable[[], float] = time.monotonic,
) -> Generator[messages.Message, None, None]:
    """Log the records, keep the progress, and pass on what is worth a value of its own.

    Losses and previews are passed on at once; heartbeats and progress at most every ``_YIELD_INTERVAL_S``, because the
    host redraws its window for each. Closing this generator closes ``received``.
    """
    last = clock()

    with closing(received) as source:
        for message in source:
            if isinstance(message, messages.LogRecord):
                logging.getLogger(message.logger).log(message.level, '%s', message.text)
            elif isinstance(message, messages.Progress):
                progress.update(message)

            now = clock()

            if isinstance(message, messages.Losses | messages.Preview) or now - last >= _YIELD_INTERVAL_S:
                last = now
                yield message


def _with_preview_interval(config: Config, interval: int) -> Config:
    inference = config.inference.model_copy(update={'preview_interval': interval})
    return config.model_copy(update={'inference': inference})


def _log_resolution(reconstruction: Reconstruction, pixel_m: tuple[float, float]) -> None:
    """Say the resolution of the half scans in metres, too: the worker knows pixels only."""
    rings = None if reconstruction.metrics is None else reconstruction.metrics.frc

    if rings is not None and rings.resolution_px is not None:
        logger.info(
            'Resolution of the half scans: %.3g nm (pixels of %.3g x %.3g nm).',
            rings.resolution_px * max(pixel_m) * 1e9,
            pixel_m[0] * 1e9,
            pixel_m[1] * 1e9,
        )
