"""The inspection of a scan in a worker, for the panel and for "Refine": never in the host's process.

Request and answer are JSON files in the job's folder. An inspection returns a :class:`ScanInspection`; what it proposes
can be applied later by another call, which writes a new workflow folder.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..data.io.product import scan_from_reconstruct_input
from ..errors import WorkerError
from ..worker.job import Job, open_job, read_scans
from ..worker.messages import Message, Progress
from ..worker.parent import run_job

if TYPE_CHECKING:
    from ptychodus.api.product import Product
    from ptychodus.api.reconstruct import ReconstructInput

    from ..config import Config
    from ..data.io.conversion import BeamGeometry
    from ..worker.channel import Channel, StopFlag

logger = logging.getLogger(__name__)

REQUEST_FILE: Final = 'inspection_request.json'
ANSWER_FILE: Final = 'inspection.json'
ENTRY: Final = f'{__name__}:serve'

_SIGN_OF_LIFE_EPOCHS: Final = 100
"""Epochs of refinements after which the worker reports that it is alive."""

RunJob = Callable[..., Generator[Message, None, None]]


@dataclass(frozen=True)
class ScanInspection:
    """What a worker found."""

    report: dict[str, Any]
    """The document of :class:`~ptychopinn_torch_plugin.inspection.report.Report`."""
    text: str
    """The same for people."""
    changes: dict[str, Any]
    """The document of :class:`~ptychopinn_torch_plugin.inspection.apply.Changes`."""
    applied: tuple[str, ...] = ()
    """Names of the proposals that were applied."""

    def document(self) -> dict[str, Any]:
        """Return the report, and what was applied, as a JSON document."""
        return {**self.report, 'applied': list(self.applied)}


def inspect_in_worker(
    parameters: ReconstructInput,
    config: Config,
    *,
    faults: bool = False,
    apply_to: Path | None = None,
) -> Generator[Message, None, ScanInspection]:
    """Inspect the scan of ``parameters`` in a worker; yield its messages and return what it found.

    Args:
        parameters: the scan, with probe; it is not changed.
        config: device and threads of the section ``inference``, and the section ``execution``.
        faults: also search for causes of a bad reconstruction.
        apply_to: a folder for a new workflow folder with the usual proposals applied; None applies nothing.

    Raises:
        InputError: the scan cannot be reconstructed, hence not be inspected.
        PtychoPINNError: the worker failed.
    """
    request = {'faults': faults, 'apply_to': None if apply_to is None else str(apply_to.absolute())}
    answer = yield from _call(parameters, config, request)
    applied = tuple(answer.pop('applied'))
    return ScanInspection(**answer, applied=applied)


def apply_in_worker(
    parameters: ReconstructInput, config: Config, changes: dict[str, Any], accepted: tuple[str, ...], folder: Path
) -> Generator[Message, None, None]:
    """Write a workflow folder with the ``accepted`` of the ``changes`` applied to the scan of ``parameters``.

    Raises:
        ConfigurationError: a name is none of the proposals.
        PtychoPINNError: the worker failed.
    """
    request = {'changes': changes, 'accepted': list(accepted), 'apply_to': str(folder.absolute())}
    yield from _call(parameters, config, request)


def _call(
    parameters: ReconstructInput, config: Config, request: dict[str, Any]
) -> Generator[Message, None, dict[str, Any]]:
    scan = scan_from_reconstruct_input(parameters)
    geometry = dataclasses.asdict(_geometry(parameters.product))
    with open_job('refine', [scan], config) as job:
        (job.folder / REQUEST_FILE).write_text(json.dumps({**request, 'geometry': geometry}), encoding='utf-8')
        with closing(run_job(job, entry=ENTRY, keeps_worker=True)) as received:
            yield from received
        answer: dict[str, Any] = json.loads((job.folder / ANSWER_FILE).read_text(encoding='utf-8'))
    return answer


def _geometry(product: Product) -> BeamGeometry:
    """Return what the product says about lengths and energy; the detector pixel follows from them."""
    from ..data.io.conversion import BeamGeometry

    pixel, centre = product.object_.get_pixel_geometry(), product.object_.get_center()
    return BeamGeometry(
        photon_energy_ev=float(product.metadata.photon_energy_eV) or None,
        detector_distance_m=float(product.metadata.detector_distance_m) or None,
        object_pixel_m=(float(pixel.height_m), float(pixel.width_m)),
        object_center_m=(float(centre.y_m), float(centre.x_m)),
    )


def serve(job: Job, channel: Channel, stop: StopFlag) -> None:
    """Answer one request: the function that the worker calls.

    Raises:
        WorkerError: a stop was requested.
        PtychoPINNError: any error of the inspection.
    """
    from ..engines.call_state import as_in_new_process
    from ..engines.devices import select_device, use_threads

    request = json.loads((job.folder / REQUEST_FILE).read_text(encoding='utf-8'))
    epochs = 0

    def should_stop() -> bool:
        nonlocal epochs
        epochs += 1
        if epochs % _SIGN_OF_LIFE_EPOCHS == 0:
            channel.send(Progress(0, 1))
        if stop.is_set():
            raise WorkerError('The inspection was stopped.')
        return False

    with as_in_new_process():
        use_threads(job.config.inference.threads)
        answer = _answer(job, request, select_device(job.config.inference.accelerator), should_stop)
    (job.folder / ANSWER_FILE).write_text(json.dumps(answer), encoding='utf-8')


def _answer(job: Job, request: dict[str, Any], device: Any, should_stop: Callable[[], bool]) -> dict[str, Any]:  # noqa: ANN401 - a torch.device; this module must not import torch
    from ..data.io.conversion import BeamGeometry
    from ..inspection.apply import Changes, write_changed
    from ..inspection.inspect import inspect
    from ..inspection.measurement import Measurement

    (scan,) = read_scans(job.folder)
    known: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in request['geometry'].items()
    }
    measurement = Measurement(
        scan.counts, scan.positions, scan.bad_pixels, scan.name, BeamGeometry(**known), scan.probe
    )
    target = request['apply_to']
    if 'changes' in request:
        write_changed(Path(target), measurement, Changes.from_document(request['changes']), request['accepted'], device)
        return {}
    inspection = inspect(measurement, device, should_stop, faults=request['faults'])
    changes = Changes.of(inspection)
    applied = changes.usual if target is not None else ()
    if applied:
        write_changed(Path(target), measurement, changes, applied, device)
    return {
        'report': inspection.report.document(),
        'text': inspection.report.text(),
        'changes': changes.document(),
        'applied': list(applied),
    }
