"""Turn any data that a workflow function is given into a container."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable

import numpy.typing as npt

from ..data.scan import RawScan
from ..data.subsampling import subsample_indices
from ..errors import InputError
from .container import GroupedScan, PtychoDataContainerTorch
from .names import WorkflowConfig, map_names
from .raw import RawDataTorch, drawn_groups
from .records import KNOWN_KEYS, ScanRecord, record_of_arrays, record_of_file


@runtime_checkable
class RawDataLike(Protocol):
    """Raw data of another package: an object with the arrays of a training file as attributes."""

    xcoords: npt.ArrayLike
    ycoords: npt.ArrayLike
    diff3d: npt.ArrayLike
    probeGuess: npt.ArrayLike  # noqa: N815 - PtychoPINN's name


Data: TypeAlias = (
    str
    | Path
    | Mapping[str, npt.ArrayLike | None]
    | RawScan
    | RawDataTorch
    | RawDataLike
    | GroupedScan
    | PtychoDataContainerTorch
)
"""What the workflow functions take: a training NPZ, a Ptychodus workflow folder, arrays under the keys of a training
file, a scan, raw data (of PtychoPINN, too), grouped data, or a container."""


def ensure_container(data: Data, config: object = None) -> PtychoDataContainerTorch:
    """Group raw data and put them into a container; return a container as it is (the same object).

    Without ``n_groups``, groups are compact and hold every position at least once; with it, so many are drawn: anchors
    with some of their nearest neighbours. Nothing is copied: a container holds the scan and a table of groups.

    Args:
        data: a path to a training NPZ or to a workflow folder; a mapping of arrays with the keys of a training file;
            a :class:`~ptychopinn_torch_plugin.data.scan.RawScan`; raw data, or any object with the attributes
            ``xcoords``, ``ycoords``, ``diff3d`` and ``probeGuess``; what ``generate_grouped_data`` returns; or a
            container.
        config: a :class:`~ptychopinn_torch_plugin.config.Config`, or whatever
            :func:`~ptychopinn_torch_plugin.compat.configuration_from` takes; None is the defaults.

    Returns:
        The container.

    Raises:
        InputError: the data cannot be used, or their patterns do not have ``N`` x ``N`` pixels.
        ConfigurationError: the configuration cannot be used.
    """
    settings = map_names({} if config is None else config)
    if isinstance(data, GroupedScan):
        data = PtychoDataContainerTorch(data, data.scan.probe)
    if isinstance(data, PtychoDataContainerTorch):
        _check_size(data, settings)
        return data
    record = as_record(data, settings)
    tree = settings.config.data
    if settings.n_subsample and settings.n_subsample < record.scan.size:
        record = record.select(subsample_indices(record.scan.size, settings.n_subsample, tree.subsample_seed))
    if settings.n_groups is None:
        groups = RawDataTorch.from_scan(record).compact_groups(tree.group_size)
    else:
        groups = drawn_groups(
            record.scan,
            tree.group_size,
            tree.neighbor_count,
            settings.n_groups,
            seed=settings.config.training.seed,
            sequential=tree.sequential_sampling,
        )
    container = PtychoDataContainerTorch.from_scan(record, groups)
    _check_size(container, settings)
    return container


def as_record(data: object, settings: WorkflowConfig) -> ScanRecord:
    """Read or wrap ungrouped ``data``.

    Raises:
        InputError: they cannot be used, or are of a type that is none of :data:`Data`.
    """
    if isinstance(data, RawDataTorch):
        return data.record
    if isinstance(data, RawScan):
        return ScanRecord.of(data)
    if isinstance(data, str | Path) and Path(data).is_dir():
        from ..data.io.workflow_folder import read_workflow_folder

        return ScanRecord.of(read_workflow_folder(Path(data)))
    quantity, nphotons = settings.diffraction_quantity, settings.nphotons
    if isinstance(data, str | Path):
        return record_of_file(Path(data), quantity=quantity, nphotons=nphotons)
    if isinstance(data, RawDataLike):
        data = {key: getattr(data, key) for key in KNOWN_KEYS if hasattr(data, key)}
    if isinstance(data, Mapping):
        return record_of_arrays(data, quantity=quantity, nphotons=nphotons)
    raise InputError(
        f'Data of type {type(data).__name__} cannot be used: give a training NPZ, a workflow folder, arrays under the '
        'keys of a training file, a RawScan, RawDataTorch or PtychoDataContainerTorch.'
    )


def _check_size(container: PtychoDataContainerTorch, settings: WorkflowConfig) -> None:
    size = settings.pattern_size
    if size is not None and container.pattern_shape != (size, size):
        height, width = container.pattern_shape
        raise InputError(
            f'N is {size} but the patterns have {height} x {width} pixels: correct N, or crop, bin or pad the patterns.'
        )
