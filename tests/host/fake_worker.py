"""A worker that runs at once and in this process: the messages of one, without the computation."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ptychopinn_torch_plugin.config import Config
from ptychopinn_torch_plugin.storage import model_file as persistence
from ptychopinn_torch_plugin.types import LossRecord, Reconstruction
from ptychopinn_torch_plugin.worker.job import Job, read_scans, write_result
from ptychopinn_torch_plugin.worker.messages import Finished, Message, Progress

LOSSES = (LossRecord(1, 0.5, 0.6), LossRecord(2, 0.25, None))

Script = Callable[[Job], Generator[Message, None, None]]


def make_header(config: Config) -> persistence.ModelHeader:
    """The header of a model that was trained for two epochs."""
    return persistence.ModelHeader(
        format_version=persistence.FORMAT_VERSION,
        backend=persistence.BACKEND,
        config=config,
        history=tuple(
            persistence.LossEntry(epoch=loss.epoch, training=loss.training, validation=loss.validation)
            for loss in LOSSES
        ),
        photons_per_frame=1.0,
        scans=('sample',),
        versions={},
    )


def write_model(path: Path, config: Config) -> None:
    """A model file of the real format whose network has no weights."""
    probe = np.ones((1, 4, 4), dtype=np.complex64)
    persistence.save_model(path, persistence.TrainedModel(make_header(config), {}, probe))


def finish(job: Job) -> Generator[Message, None, None]:
    """Write at once the files of a successful run."""
    if job.kind == 'train':
        assert job.output_folder is not None
        write_model(job.output_folder / 'model.safetensors', job.config)
    else:
        (scan,) = read_scans(job.folder)
        write_result(
            job.folder,
            Reconstruction(
                object_array=np.full(scan.object_shape, 0.5j, dtype=np.complex64),
                coverage=np.ones(scan.object_shape, dtype=bool),
                probe=np.full(scan.probe.shape, 2.0, dtype=np.complex64),
                positions=scan.positions,
                intensities=np.ones(len(scan.counts), dtype=np.float32),
                losses=LOSSES,
            ),
        )

    yield Progress(10, 10)
    yield Finished()


@dataclass
class FakeWorker:
    """Replaces ``run_job``: plays a script and remembers its jobs and how often one ended."""

    script: Script = finish
    jobs: list[Job] = field(default_factory=list)
    scan_names: list[list[str]] = field(default_factory=list)
    ended: int = 0
    should_stop: Callable[[], bool] = lambda: False

    def __call__(
        self, job: Job, *, should_stop: Callable[[], bool] = lambda: False, keeps_worker: bool = False
    ) -> Generator[Message, None, None]:
        self.should_stop = should_stop
        self.jobs.append(job)
        self.scan_names.append([scan.name for scan in read_scans(job.folder)])

        try:
            yield from self.script(job)
        finally:
            self.ended += 1
