"""Arrays reach the other process unchanged, mapped, and without a pickle."""

from __future__ import annotations

import dataclasses
import errno
import multiprocessing
import os
import stat
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptychopinn_torch_plugin.config import Config
from ptychopinn_torch_plugin.data.scan import RawScan
from ptychopinn_torch_plugin.errors import ConfigurationError, MemoryLimitError, WorkerError
from ptychopinn_torch_plugin.storage.atomic import writer_tag
from ptychopinn_torch_plugin.types import (
    Credibility,
    FourierRingCorrelation,
    LossRecord,
    Reconstruction,
    ReconstructionMetrics,
)
from ptychopinn_torch_plugin.worker.job import (
    JobKind,
    has_result,
    open_job,
    read_preview,
    read_result,
    read_scan,
    read_scans,
    remove_orphan,
    write_result,
    write_scan,
)

from .conftest import make_reconstruction, make_scan


@pytest.mark.parametrize('dtype', ['uint16', 'float32', '>i4'])
def test_scan_round_trip_keeps_every_field(tmp_path: Path, dtype: str) -> None:
    scan = make_scan(dtype)
    write_scan(tmp_path / 'scan', scan)
    copy = read_scan(tmp_path / 'scan')
    for field in dataclasses.fields(RawScan):
        before, after = getattr(scan, field.name), getattr(copy, field.name)
        if isinstance(before, np.ndarray):
            assert after.dtype == before.dtype, field.name
            np.testing.assert_array_equal(after, before, err_msg=field.name)
        else:
            assert after == before, field.name


def test_counts_are_a_read_only_map(tmp_path: Path, scan: RawScan) -> None:
    write_scan(tmp_path, scan)
    counts = read_scan(tmp_path).counts
    assert isinstance(counts, np.memmap)
    assert not counts.flags.writeable


def test_views_and_numpy_scalars_survive(tmp_path: Path, scan: RawScan) -> None:
    numbers: Any = (np.float32(0.5), np.float32(2.0))
    view = dataclasses.replace(scan, counts=scan.counts[::2, ::-1].transpose(0, 2, 1), fresnel_numbers=numbers)
    write_scan(tmp_path, view)
    copy = read_scan(tmp_path)
    np.testing.assert_array_equal(copy.counts, view.counts)
    assert copy.fresnel_numbers == (0.5, 2.0)


def test_a_pickle_is_neither_written_nor_read(tmp_path: Path, scan: RawScan) -> None:
    objects = np.array([{'a': 1}], dtype=object)
    with pytest.raises(ValueError, match='allow_pickle'):
        write_scan(tmp_path / 'out', dataclasses.replace(scan, probe=objects))
    write_scan(tmp_path / 'in', scan)
    np.save(tmp_path / 'in' / 'probe.npy', objects, allow_pickle=True)
    with pytest.raises(ValueError, match='allow_pickle'):
        read_scan(tmp_path / 'in')


def test_result_round_trip(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    object_array = (rng.normal(size=(9, 8)) + 1j * rng.normal(size=(9, 8))).astype(np.complex64)
    losses = (LossRecord(1, 0.5, None), LossRecord(2, 0.25, 0.75))
    written = Reconstruction(
        object_array,
        object_array.real > 0,
        object_array[None, :4],
        rng.normal(size=(7, 2)),
        np.ones(7, np.float32),
        losses,
    )
    write_result(tmp_path, written)
    read = read_result(tmp_path)
    assert read.losses == losses
    for name in ('object_array', 'coverage', 'probe', 'positions', 'intensities'):
        array = getattr(read, name)
        assert not isinstance(array, np.memmap), 'the result must outlive the folder'
        assert array.dtype == getattr(written, name).dtype
        np.testing.assert_array_equal(array, getattr(written, name))


@pytest.mark.parametrize('has_frc', [False, True])
def test_the_metrics_travel_with_the_result(tmp_path: Path, has_frc: bool) -> None:
    image = np.array([[0.5, np.nan]], dtype=np.float32)
    ring = np.array([np.nan, 0.75])
    frc = FourierRingCorrelation(ring, ring + 1, ring + 2, None) if has_frc else None
    metrics = ReconstructionMetrics(
        0.1, 0.2, 0.3, 0.4, 0.5, 0.6, float('nan'), image, image + 1, image + 2, image + 3, frc,
        Credibility(0.9, 0.1, 0.4, 0.5, 'green', None, -9.0, 'Credible.'),
    )  # fmt: skip
    wave = image.astype(np.complex64)
    result = Reconstruction(wave, image > 0, wave[None], np.zeros((1, 2)), np.ones(1, np.float32), (), metrics)
    write_result(tmp_path, result)
    read = read_result(tmp_path).metrics
    assert read is not None
    for field in dataclasses.fields(ReconstructionMetrics):
        if field.name != 'frc':
            np.testing.assert_array_equal(getattr(read, field.name), getattr(metrics, field.name), field.name)
    assert (read.frc is None) == (frc is None)
    if read.frc is not None and frc is not None:
        np.testing.assert_array_equal(read.frc.threshold, frc.threshold)
        assert read.frc.resolution_px is None


def test_missing_result_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match='no result'):
        read_result(tmp_path)


def test_scans_of_a_job_keep_their_order_and_the_folder_goes(tmp_path: Path, scan: RawScan) -> None:
    scans = [dataclasses.replace(scan, name=f'scan {number}') for number in range(12)]
    with open_job('train', scans, Config(), output_folder=tmp_path) as job:
        folder = job.folder
        assert (folder / 'scans' / '011').is_dir()
        assert [copy.name for copy in read_scans(folder)] == [one.name for one in scans]
    assert not folder.exists()


def test_paths_are_absolute(tmp_path: Path, scan: RawScan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with open_job('reconstruct', [scan], Config(), model_file=Path('model.safetensors')) as job:
        assert job.model_file == tmp_path.resolve() / 'model.safetensors'


def test_incomplete_jobs_are_refused(tmp_path: Path, scan: RawScan) -> None:
    with pytest.raises(ConfigurationError, match='output folder'), open_job('train', [scan], Config()):
        pass
    with pytest.raises(ConfigurationError, match='0 scans'), open_job('train', [], Config(), output_folder=tmp_path):
        pass
    with pytest.raises(ConfigurationError, match='model file'), open_job('reconstruct', [scan], Config()):
        pass
    with (
        pytest.raises(ConfigurationError, match='not 2'),
        open_job('reconstruct', [scan, scan], Config(), model_file=tmp_path),
    ):
        pass


@pytest.mark.parametrize('kind', ['train', 'reconstruct', 'refine'])
def test_a_job_has_what_it_was_opened_with(kind: JobKind, tmp_path: Path, scan: RawScan) -> None:
    config = Config()
    scans = [scan, scan] if kind == 'train' else [scan]
    arguments: dict[str, Any] = {'output_folder': tmp_path / 'out', 'model_file': tmp_path / 'm', 'pixel_m': (1.0, 2.0)}
    with open_job(kind, scans, config, **arguments, keeps_previews=True) as job:
        assert (job.kind, job.config, job.pixel_m, job.keeps_previews) == (kind, config, (1.0, 2.0), True)
        assert (job.output_folder, job.model_file) == (tmp_path.resolve() / 'out', tmp_path.resolve() / 'm')
        assert job.section is (config.training if kind == 'train' else config.inference)
        assert len(read_scans(job.folder)) == len(scans)
    bare: dict[str, Any] = {'output_folder': tmp_path} if kind == 'train' else {}
    bare |= {'model_file': tmp_path / 'm'} if kind == 'reconstruct' else {}
    with open_job(kind, [scan], config, **bare) as job:
        assert (job.pixel_m, job.keeps_previews) == (None, False)
        assert (job.model_file is None) == (kind != 'reconstruct')
        assert (job.output_folder is None) == (kind != 'train')
    with pytest.raises(ConfigurationError, match='0 scans|exactly one scan, not 0'), open_job(kind, [], config, **bare):
        pass


@pytest.mark.parametrize(('number', 'error'), [(errno.ENOMEM, MemoryLimitError), (errno.EIO, OSError)])
def test_a_map_that_does_not_fit_into_memory(
    number: int, error: type[Exception], tmp_path: Path, scan: RawScan, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_scan(tmp_path, scan)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, 'no')

    monkeypatch.setattr(np, 'load', refuse)
    with pytest.raises(
        error, match='too small for the scan: crop or bin' if number == errno.ENOMEM else 'no'
    ) as caught:
        read_scan(tmp_path)
    assert type(caught.value) is error


def test_a_preview_with_values_that_are_not_finite_is_none(tmp_path: Path) -> None:
    for value, is_shown in ((1.0, True), (np.nan, False), (np.inf, False)):
        np.save(tmp_path / 'preview.npy', np.array([[1.0, value]], dtype=np.complex64))
        assert (read_preview(tmp_path / 'preview.npy') is not None) == is_shown


def test_a_record_without_its_header_is_incomplete(tmp_path: Path, scan: RawScan) -> None:
    write_scan(tmp_path, scan)
    assert not (tmp_path / 'scan.tmp').exists()
    (tmp_path / 'scan.json').unlink()
    with pytest.raises(WorkerError, match=r'There is no scan in the job folder .*scan\.json is missing'):
        read_scan(tmp_path)
    with pytest.raises(TypeError, match='Path is neither an array nor a plain value'):
        write_scan(tmp_path, dataclasses.replace(scan, name=Path('x')))  # type: ignore[arg-type]
    assert not (tmp_path / 'scan.json').exists()


def test_full_disk_names_the_remedy(tmp_path: Path, scan: RawScan) -> None:
    (tmp_path / 'file').touch()
    with pytest.raises(WorkerError, match='TMPDIR'):
        write_scan(tmp_path / 'file' / 'scan', scan)


def test_only_our_own_folders_count_as_orphans(tmp_path: Path, scan: RawScan) -> None:
    (tmp_path / 'precious').touch()
    remove_orphan(tmp_path)
    assert (tmp_path / 'precious').exists()
    with open_job('train', [scan], Config(), output_folder=tmp_path) as job:
        remove_orphan(job.folder)
        assert not job.folder.exists()


def test_replaced_preview_is_none(tmp_path: Path) -> None:
    assert read_preview(tmp_path / 'preview-000001.npy') is None


def test_metrics_that_come_later_leave_the_result_complete(tmp_path: Path, scan: RawScan) -> None:
    first = make_reconstruction(scan)
    assert not has_result(tmp_path)
    write_result(tmp_path, first)
    assert has_result(tmp_path)
    assert read_result(tmp_path).metrics is None
    image = np.ones((1, 2), dtype=np.float32)
    metrics = ReconstructionMetrics(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, image, image, image, image, None)
    write_result(tmp_path, dataclasses.replace(first, metrics=metrics))
    read = read_result(tmp_path)
    assert read.metrics is not None
    np.testing.assert_array_equal(read.object_array, first.object_array)


# Job folders of processes that were killed, in a temporary folder that others use as well

OTHER_USER = 54321


@pytest.fixture
def dead_owner(monkeypatch: pytest.MonkeyPatch) -> str:
    """The tag of a process of this machine that has ended."""
    done = multiprocessing.get_context('spawn').Process(target=os.getpid)
    done.start()
    done.join()
    return f'{writer_tag().split("-")[0]}-{done.pid}'


def make_job_folder(folder: Path, marker: str) -> Path:
    folder.mkdir(parents=True)
    (folder / '.ptychopinn-job').write_text(marker)
    return folder


def sweep(shared: Path, scan: RawScan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Open a job in the temporary folder ``shared``, as every run does."""
    monkeypatch.setattr(tempfile, 'tempdir', str(shared))
    with open_job('refine', [scan], Config()):
        pass


def test_folders_of_the_living_and_of_nobody_are_left_alone(
    tmp_path: Path, scan: RawScan, dead_owner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = [
        make_job_folder(tmp_path / 'ptychopinn-living', writer_tag()),
        make_job_folder(tmp_path / 'ptychopinn-text', 'no tag'),
        make_job_folder(tmp_path / 'ptychopinn-longer', f'{dead_owner} and more'),
        make_job_folder(tmp_path / 'another-prefix', dead_owner),
    ]
    (tmp_path / 'ptychopinn-file').write_text(dead_owner)
    (tmp_path / 'ptychopinn-empty').mkdir()
    gone = [make_job_folder(tmp_path / f'ptychopinn-gone-{number}', dead_owner) for number in range(2)]
    sweep(tmp_path, scan, monkeypatch)
    assert all(folder.exists() for folder in kept)
    assert (tmp_path / 'ptychopinn-file').exists()
    assert (tmp_path / 'ptychopinn-empty').exists()
    assert not any(folder.exists() for folder in gone)


def test_a_marker_of_seven_terabytes_is_not_read(
    tmp_path: Path, scan: RawScan, dead_owner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    huge = make_job_folder(tmp_path / 'ptychopinn-huge', dead_owner)
    os.truncate(huge / '.ptychopinn-job', 7 * 10**12)
    gone = make_job_folder(tmp_path / 'ptychopinn-gone', dead_owner)
    sweep(tmp_path, scan, monkeypatch)
    assert huge.exists()
    assert not gone.exists(), 'the others are swept all the same'


@pytest.mark.skipif(os.name != 'posix', reason='links and pipes of POSIX')
def test_a_marker_that_is_no_file_is_not_opened(
    tmp_path: Path, scan: RawScan, dead_owner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / 'shared'
    real = make_job_folder(tmp_path / 'elsewhere' / 'ptychopinn-real', dead_owner)
    for name in ('pipe', 'link', 'folder'):
        (shared / f'ptychopinn-{name}').mkdir(parents=True)
    os.mkfifo(shared / 'ptychopinn-pipe' / '.ptychopinn-job')
    (shared / 'ptychopinn-link' / '.ptychopinn-job').symlink_to(real / '.ptychopinn-job')
    (shared / 'ptychopinn-folder' / '.ptychopinn-job').mkdir()
    (shared / 'ptychopinn-linked').symlink_to(real)
    before = sorted(shared.rglob('*'))
    sweep(shared, scan, monkeypatch)
    assert sorted(shared.rglob('*')) == before
    assert real.exists()


@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() != 0, reason='only root can make files of others')
def test_job_folders_of_other_users_are_left_alone(
    tmp_path: Path, scan: RawScan, dead_owner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = make_job_folder(tmp_path / 'ptychopinn-foreign', dead_owner)
    planted = make_job_folder(tmp_path / 'ptychopinn-planted', dead_owner)
    os.chown(foreign, OTHER_USER, OTHER_USER)
    os.chown(planted / '.ptychopinn-job', OTHER_USER, OTHER_USER)
    sweep(tmp_path, scan, monkeypatch)
    assert foreign.exists()
    assert planted.exists(), 'in a folder of ours, but not written by us'


@pytest.mark.parametrize('mask', [0o000, 0o077])
def test_nobody_else_can_read_or_write_a_job(tmp_path: Path, scan: RawScan, mask: int) -> None:
    before = os.umask(mask)
    try:
        with open_job('refine', [scan], Config()) as job:
            mode = job.folder.stat().st_mode
            copies = read_scans(job.folder)
    finally:
        os.umask(before)
    assert stat.S_IMODE(mode) == 0o700
    np.testing.assert_array_equal(copies[0].counts, scan.counts)
