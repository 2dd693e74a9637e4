"""Base of the reconstructors: a run in the worker, its progress, and products at a rate that the window can show."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from ptychodus.api.reconstruct import ReconstructInput, Reconstructor, ReconstructOutput

from ..data.io.product import product_from_reconstruction, scan_from_reconstruct_input, with_object
from ..errors import MemoryLimitError, WorkerError
from ..run_progress import RunProgress
from ..worker import messages
from ..worker.job import Job, JobKind, open_job, read_preview, read_result
from ..worker.parent import run_job
from .contract import HostRun
from .output_check import keep_elsewhere
from .settings import PtychoPINNSettings

if TYPE_CHECKING:
    from ptychodus.api.product import Product

    from ..config import Config
    from ..types import Reconstruction

LOGGER_NAME: Final = 'ptychopinn_torch_plugin'

TRAINING: Final = 'Training'
"""What :meth:`WorkerReconstructor.run` calls a training."""

_YIELD_INTERVAL_S: Final = 0.5
"""Shortest time between two values yielded for the progress bar alone; the window redraws for each."""

_SHOW_INTERVAL_S: Final = 1.0
"""Shortest time between two products shown; the host itself updates its window once a second."""

_SHOW_TIMEOUT_S: Final = 10.0
"""Longest time between two products, also where none is shown (no window): the host checks Stop after each."""

logger = logging.getLogger(LOGGER_NAME)

Returned = TypeVar('Returned')


def ignore_run(_reconstructor: WorkerReconstructor) -> None:
    """Do nothing when a run begins: where no window shows it."""


class WorkerReconstructor(Reconstructor):
    """A reconstructor whose work is done in a worker process; base of those with and without a model."""

    def __init__(
        self, name: str, settings: PtychoPINNSettings, on_run: Callable[[WorkerReconstructor], None] = ignore_run
    ) -> None:
        self._on_run = on_run
        self._name = name
        self._settings = settings
        self._host_run: HostRun | None = None
        self._result: Product | None = None
        self._progress = RunProgress()

    @property
    def name(self) -> str:
        """Name in the window and in settings files."""
        return self._name

    @property
    def progress(self) -> RunProgress:
        """Progress of the present run, or of the last one."""
        return self._progress

    def get_progress_goal(self) -> int:
        """Return the units of work of the present run, at least 1 (the host hides Stop while the goal is 0)."""
        return self._progress.goal

    @contextmanager
    def begin_host_run(self, run: HostRun) -> Iterator[None]:
        """Use what the host knows about its call while that lasts; the input is released afterwards."""
        self._host_run = run

        try:
            yield
        except OSError as error:
            if self._result is not None:
                keep_elsewhere(self._result, error)
            raise
        finally:
            self._host_run = self._result = None

    @contextmanager
    def run(self, what: str) -> Iterator[None]:
        """Reset the progress; log the reason when the run fails, in the one log that the window shows.

        Raises:
            MemoryLimitError: the memory of the host's process ran out.
        """
        self._progress = RunProgress()
        self._progress.makes_product = what != TRAINING
        self._on_run(self)

        try:
            with _described_memory_errors():
                yield
        except Exception as error:
            logger.error('%s failed: %s', what, error)
            raise

    @property
    def is_stopped(self) -> bool:
        """Whether a signal has requested the end of the present run."""
        return self._host_run is not None and self._host_run.should_stop()

    @property
    def output_folder(self) -> Path | None:
        """Folder that the present run writes files into; None in the window, and where nothing is known of the host."""
        return None if self._host_run is None else self._host_run.output_folder

    def shown_messages(
        self, parameters: ReconstructInput, received: Generator[messages.Message, None, Returned]
    ) -> Generator[ReconstructOutput, None, Returned]:
        """Receive the messages of a worker that makes no product, and return what ``received`` returns.

        In the window, the product of ``parameters`` is yielded now and then, so that the host can check Stop. A signal
        of batch mode ends the worker.

        Raises:
            WorkerError: a signal has requested the end of the run.
        """
        host = self._host_run
        pacer = None if host is None or host.writes_intermediate_products else ProductPacer(host.call_when_shown)

        with closing(received):
            while True:
                try:
                    message = next(received)
                except StopIteration as end:
                    result: Returned = end.value
                    return result

                if isinstance(message, messages.LogRecord):
                    logging.getLogger(message.logger).log(message.level, '%s', message.text)

                if self.is_stopped:
                    raise WorkerError('The run was stopped by a signal during the inspection; there is no result.')

                if pacer is not None and pacer.is_due():
                    yield ReconstructOutput(parameters.product, self._progress.done)
                    pacer.begin()

    def run_worker(self, job: Job) -> Generator[messages.Message, None, None]:
        """Run ``job`` in a worker and yield the messages that the host has to see; closing this ends the worker."""
        self._progress.begin(job.kind, job.config)
        received = run_job(job, should_stop=lambda: self.is_stopped, keeps_worker=True)
        return filter_messages(received, self._progress)

    def products(
        self, parameters: ReconstructInput, kind: JobKind, config: Config, model_file: Path | None
    ) -> Iterator[ReconstructOutput]:
        """Run a reconstruction in the worker and yield its products, the result last.

        Where the host shows intermediate products, they are previews (or the product so far, so that the host can check
        Stop), no more than the window can show. Where it writes every product to a file, they are those that
        ``batch_interval`` asks for, and the metrics are written beside them. Where nothing is known about the host,
        only the result is yielded.
        """
        host = self._host_run
        is_batch = host is not None and host.writes_intermediate_products
        pacer = None if host is None or is_batch else ProductPacer(host.call_when_shown)
        file_interval = config.inference.batch_interval if is_batch else 0

        if pacer is None:
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
            closing(self.run_worker(job)) as received,
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

                if pacer is not None and pacer.is_due():
                    preview, newest = None if newest is None else read_preview(newest), None
                    product = product if preview is None else with_object(product, preview)
                    yield ReconstructOutput(product, self._progress.done)
                    pacer.begin()

            reconstruction = read_result(job.folder)

        if self.is_stopped:
            logger.warning('The run was stopped by a signal: the product holds the result so far.')

        _log_resolution(reconstruction, pixel_m)
        self._result = product_from_reconstruction(parameters, reconstruction)
        yield ReconstructOutput(self._result, self._progress.finish())


class ProductPacer:
    """Times the products yielded to a window.

    The next one is due when the window has shown the last one and then was free for its user for as long as that took.
    """

    def __init__(
        self, call_when_shown: Callable[[Callable[[], None]], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._call_when_shown = call_when_shown
        self._clock = clock
        self._next = clock()

    def is_due(self) -> bool:
        """Return whether the next product may be yielded."""
        return self._clock() >= self._next

    def begin(self) -> None:
        """Start the time of a product that was just yielded."""
        begun = self._clock()
        self._next = begun + _SHOW_TIMEOUT_S

        def shown() -> None:
            now = self._clock()
            self._next = now + max(_SHOW_INTERVAL_S, now - begun)

        self._call_when_shown(shown)


def filter_messages(
    received: Generator[messages.Message, None, None],
    progress: RunProgress,
    clock: Callable[[], float] = time.monotonic,
) -> Generator[messages.Message, None, None]:
    """Write log records to the log, update ``progress``, and yield the messages that the host has to see.

    Losses and previews are yielded at once; heartbeats and progress at most every ``_YIELD_INTERVAL_S``, because the
    host redraws its window for each. Closing this generator closes ``received``.
    """
    last = clock()

    with closing(received) as source:
        for message in source:
            if isinstance(message, messages.LogRecord):
                is_own = message.logger.partition('.')[0] == LOGGER_NAME
                # The window shows the name of the logger with every line; that of a module is of no use there.
                name = LOGGER_NAME if is_own and message.level >= logging.INFO else message.logger
                logging.getLogger(name).log(message.level, '%s', message.text)
            elif isinstance(message, messages.Stage):
                progress.stage = message.name
            elif isinstance(message, messages.Progress):
                progress.update(message.done, message.goal)
            elif isinstance(message, messages.Losses):
                progress.add_losses(message.epoch, message.training, message.validation)

            now = clock()

            if isinstance(message, messages.Losses | messages.Preview) or now - last >= _YIELD_INTERVAL_S:
                last = now
                yield message


@contextmanager
def _described_memory_errors() -> Iterator[None]:
    """Say what to do when the memory of the host's process, which holds the patterns as well, runs out."""
    try:
        yield
    except MemoryLimitError:
        raise
    except MemoryError as error:
        raise MemoryLimitError(
            f'The main memory is too small for this scan ({error or "MemoryError"}): crop or bin the patterns, use '
            'fewer positions, or a machine (or a cluster job) with more memory.'
        ) from error


def _with_preview_interval(config: Config, interval: int) -> Config:
    inference = config.inference.model_copy(update={'preview_interval': interval})
    return config.model_copy(update={'inference': inference})


def _log_resolution(reconstruction: Reconstruction, pixel_m: tuple[float, float]) -> None:
    """Log the resolution of the half scans in nanometres; the worker's own log has it in pixels."""
    frc = None if reconstruction.metrics is None else reconstruction.metrics.frc

    if frc is not None and frc.resolution_px is not None:
        logger.info(
            'Resolution of the half scans: %.3g nm (pixels of %.3g x %.3g nm).',
            frc.resolution_px * max(pixel_m) * 1e9,
            pixel_m[0] * 1e9,
            pixel_m[1] * 1e9,
        )
