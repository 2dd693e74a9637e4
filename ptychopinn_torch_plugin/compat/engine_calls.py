"""Train on containers and reconstruct containers with the engine of the package."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..config import Config
from ..data.io.output import write_arrays
from ..dependencies import missing
from ..errors import ConfigurationError, InputError
from ..metrics import write_metrics
from ..metrics.run import Run
from .bundle import MODEL_NAME, load_inference_bundle_torch, model_of
from .container import PtychoDataContainerTorch
from .names import WorkflowConfig
from .reassembly import Arrangement, arranged_patches, stitch

if TYPE_CHECKING:
    from ..storage.model_file import TrainedModel

logger = logging.getLogger(__name__)

BACKEND = 'pytorch'
RECONSTRUCTION_FILE = 'reconstruction.npz'
"""Name of the file for the stitched object in the output folder."""

Image: TypeAlias = npt.NDArray[np.float32]
Results: TypeAlias = dict[str, Any]


def train_containers(
    train_container: PtychoDataContainerTorch | Sequence[PtychoDataContainerTorch],
    test_container: PtychoDataContainerTorch | None,
    settings: WorkflowConfig,
) -> Results:
    """Run the training loop of the package on the positions in ``train_container``, or on several of them.

    Returns and errors are those of :func:`ptychopinn_torch_plugin.workflows.train_cdi_model_torch`.
    """
    with _engine():
        from ..storage.model_file import load_model
        from ..training.calibration import FIRST_EPOCHS, LATER_EPOCHS
        from ..training.run import train
    containers = [train_container] if isinstance(train_container, PtychoDataContainerTorch) else train_container
    tree = _with_groups_of(containers, settings.config)
    scans = [container.members(settings.nphotons)[0].scan for container in containers]
    if test_container is not None and (settings.validate_on_test_data or tree.data.hold_out_scan):
        scans.append(test_container.members(settings.nphotons)[0].scan)
        tree = tree.model_copy(update={'data': tree.data.model_copy(update={'hold_out_scan': True})})
    if tree.training.probe_trainable:
        logger.info(
            'The probe is learned with the network (probe_trainable): the solver runs %d epochs before the first '
            'training epoch and %d before every other one; probe_trainable=False switches them off.',
            FIRST_EPOCHS, LATER_EPOCHS,
        )  # fmt: skip
    with _folder(settings) as folder:
        model_file = train(scans, tree, folder)
        model = load_model(model_file)
    return {
        'history': {
            'train_loss': [record.training for record in model.losses],
            'val_loss': [record.validation for record in model.losses],
        },
        'train_container': train_container,
        'test_container': test_container,
        'models': {MODEL_NAME: model},
        'model_file': None if settings.output_dir is None else model_file,
        'config': tree,
        'backend': BACKEND,
    }


def reassemble_container(
    container: PtychoDataContainerTorch, settings: WorkflowConfig, how: Arrangement, models: object
) -> tuple[Image, Image, Results]:
    """Reconstruct the positions in ``container`` with a trained model, and stitch patches of the object.

    Returns and errors are those of :func:`ptychopinn_torch_plugin.workflows.reassemble_cdi_image_torch`.
    """
    with _engine():
        from ..engines.pipeline import reconstruct
    model = _chosen_model(models, settings)
    record, groups = container.members(settings.nphotons)
    config = _with_probe_of(container, settings.config)
    started, begun = datetime.now(UTC).astimezone(), time.monotonic()
    reconstruction = reconstruct(record.scan, model, config)
    run = Run('reconstruct', record.scan, config, started, time.monotonic() - begun)
    arranged = arranged_patches(reconstruction.object_array, record, groups, how)
    picture = stitch(arranged, how.middle)
    results: Results = {
        'obj_tensor_full': arranged.patches,
        'global_offsets': arranged.global_offsets,
        'recon_amp': np.abs(picture.image),
        'recon_phase': np.angle(picture.image),
        'recon_coverage': picture.coverage,
        'recon_origin': (int(picture.origin[0]), int(picture.origin[1])),
        'object_origin': record.object_origin,
        'network_object': reconstruction.network_object,
        'refined_object': reconstruction.object_array if settings.config.refinement.refine_epochs else None,
        'reconstruction': reconstruction,
        'test_container': container,
        'models': {MODEL_NAME: model},
        'backend': BACKEND,
    }
    if reconstruction.network_object is not None:
        by_network = stitch(arranged_patches(reconstruction.network_object, record, groups, how), how.middle).image
        results |= {'network_amp': np.abs(by_network), 'network_phase': np.angle(by_network)}
    if settings.output_dir is not None:
        _write(settings.output_dir / RECONSTRUCTION_FILE, results)
        write_metrics(settings.output_dir, reconstruction, run=run)
    return results['recon_amp'], results['recon_phase'], results


def _with_groups_of(containers: Sequence[PtychoDataContainerTorch], config: Config) -> Config:
    """Return ``config`` with the group size of the containers.

    Raises:
        InputError: the groups of the containers have several sizes, other than that of ``config``.
    """
    given = config.data.group_size
    sizes = {container.nn_indices.shape[1] for container in containers}
    # Groups of a scan with fewer positions than a group has members hold all of them.
    if all(
        container.nn_indices.shape[1] == min(given, np.unique(container.nn_indices).size) for container in containers
    ):
        return config
    if len(sizes) > 1:
        raise InputError(
            f'The groups of the containers have {" and ".join(map(str, sorted(sizes)))} positions: give containers '
            'with groups of one size.'
        )
    (size,) = sizes
    logger.warning(
        'The groups of the container have %d positions: the network is trained with groups of that size, not of %d as '
        'in the configuration.',
        size, given,
    )  # fmt: skip
    update = {'group_size': size, 'neighbor_count': max(config.data.neighbor_count, size - 1)}
    return config.model_copy(update={'data': config.data.model_copy(update=update)})


def _with_probe_of(container: PtychoDataContainerTorch, config: Config) -> Config:
    """Return ``config`` such that a probe that was given to ``container`` is used, not the one of the model."""
    if not container.has_given_probe or config.inference.use_model_probe != 'auto':
        return config
    logger.info('The probe that was given to the container is used; assign the probe of the model to use that one.')
    update = {'use_model_probe': 'never'}
    return config.model_copy(update={'inference': config.inference.model_copy(update=update)})


def _chosen_model(models: object, settings: WorkflowConfig) -> TrainedModel:
    if models is not None:
        return model_of(models)
    if settings.model_path is None:
        raise ConfigurationError('There is no model to stitch with: give models, or model_path in the configuration.')
    return model_of(load_inference_bundle_torch(settings.model_path)[0])


def _write(path: Path, results: Results) -> None:
    """Write the images, the object that they were cut from, and its probe to ``path``."""
    reconstruction = results['reconstruction']
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: results[name] for name in ('recon_amp', 'recon_phase', 'recon_origin', 'network_object')}
    arrays |= {name: getattr(reconstruction, name) for name in ('coverage', 'probe', 'positions')}
    arrays['object'] = reconstruction.object_array
    write_arrays(path, {name: np.asarray(array) for name, array in arrays.items() if array is not None})
    logger.info('The stitched object is in %s.', path)


@contextmanager
def _folder(settings: WorkflowConfig) -> Iterator[Path]:
    """Yield the output folder, or a temporary one that is removed when the model has been read."""
    if settings.output_dir is not None:
        yield settings.output_dir
        return
    with TemporaryDirectory(prefix='ptychopinn-') as folder:
        yield Path(folder)


@contextmanager
def _engine() -> Iterator[None]:
    """Turn an import that fails inside into the message that says what to install."""
    try:
        import torch  # noqa: F401 - whether it can be

        yield
    except ImportError as error:
        raise missing(error) from error
