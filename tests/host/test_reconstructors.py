"""The life cycle of a reconstructor, with a worker that answers at once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from ptychodus.api.io import load_product, save_product
from ptychodus.api.product import LossValue
from ptychodus.api.reconstruct import ReconstructInput, ReconstructOutput, TrainableReconstructor, TrainOutput
from ptychodus.api.settings import SettingsRegistry

from ptychopinn_torch_plugin.config import Config, ModelConfig
from ptychopinn_torch_plugin.errors import (
    ConfigurationError,
    InputError,
    ModelFileError,
    ModelNotLoadedError,
    TrainingError,
    WorkerError,
)
from ptychopinn_torch_plugin.host import runs as module
from ptychopinn_torch_plugin.host.contract import HostRun
from ptychopinn_torch_plugin.host.library import PtychoPINNPyTorchLibrary
from ptychopinn_torch_plugin.host.reconstructors import PtychoPINNReconstructor
from ptychopinn_torch_plugin.run_progress import RunProgress
from ptychopinn_torch_plugin.worker.job import Job
from ptychopinn_torch_plugin.worker.messages import Finished, Heartbeat, LogRecord, Losses, Message, Preview, Progress

from .fake_worker import LOSSES, FakeWorker, Script, finish, write_model

INTERACTIVE = HostRun(training_input=None, writes_intermediate_products=False)
BATCH = HostRun(training_input=None, writes_intermediate_products=True)


@pytest.fixture
def library() -> PtychoPINNPyTorchLibrary:
    return PtychoPINNPyTorchLibrary(SettingsRegistry())


@pytest.fixture
def pinn(library: PtychoPINNPyTorchLibrary) -> PtychoPINNReconstructor:
    reconstructor = next(iter(library))
    assert isinstance(reconstructor, PtychoPINNReconstructor)
    return reconstructor


@pytest.fixture
def supervised(library: PtychoPINNPyTorchLibrary) -> PtychoPINNReconstructor:
    _, reconstructor, _ = library
    assert isinstance(reconstructor, PtychoPINNReconstructor)
    return reconstructor


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[[Script], FakeWorker]:
    def install(script: Script) -> FakeWorker:
        worker = FakeWorker(script)
        monkeypatch.setattr(module, 'run_job', worker)
        monkeypatch.setattr(module, '_YIELD_INTERVAL_S', 0.0)
        monkeypatch.setattr(module, '_SHOW_INTERVAL_S', 0.0)
        return worker

    return install


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / 'a model.safetensors'
    write_model(path, Config())
    return path


def test_refine_needs_no_model(
    library: PtychoPINNPyTorchLibrary, play: Callable[[Script], FakeWorker], reconstruct_input: ReconstructInput
) -> None:
    *_, refiner = library
    assert not isinstance(refiner, TrainableReconstructor)
    assert refiner.name == 'Refine'
    worker = play(finish)
    (output,) = refiner.reconstruct(reconstruct_input)
    assert worker.jobs[0].kind == 'refine'
    assert worker.jobs[0].model_file is None
    assert (output.product.object_.get_array() == 0.5j).all()
    assert output.progress == refiner.get_progress_goal()


def test_refine_without_epochs_is_refused(
    library: PtychoPINNPyTorchLibrary, reconstruct_input: ReconstructInput
) -> None:
    *_, refiner = library
    library.settings.get_parameter('refinement', 'refine_epochs').set_value(0)
    with pytest.raises(ConfigurationError, match='refine_epochs = 0'):
        next(iter(refiner.reconstruct(reconstruct_input)))


def test_library_lists_its_reconstructors(library: PtychoPINNPyTorchLibrary) -> None:
    assert library.name == 'PtychoPINN (PyTorch)'
    assert [reconstructor.name for reconstructor in library] == ['PINN', 'Supervised', 'Refine']
    assert library.get_logger().name == 'ptychopinn_torch_plugin'


# Training


def train(reconstructor: PtychoPINNReconstructor, source: Path, target: Path) -> list[TrainOutput]:
    return list(reconstructor.train(source, target))


def test_training_loads_the_model_it_wrote(
    pinn: PtychoPINNReconstructor, play: Callable[[Script], FakeWorker], workflow_folder: Path, tmp_path: Path
) -> None:
    worker = play(finish)
    assert not pinn.is_model_loaded()
    outputs = train(pinn, workflow_folder, tmp_path / 'not' / 'yet there')

    assert pinn.is_model_loaded()
    assert (tmp_path / 'not' / 'yet there' / 'model.safetensors').is_file()
    assert outputs[-1].progress == pinn.get_progress_goal() == 10
    (job,) = worker.jobs
    assert (job.kind, job.config.model.model_type) == ('train', 'pinn')
    assert not job.folder.exists()


def test_settings_reach_the_worker(
    supervised: PtychoPINNReconstructor,
    library: PtychoPINNPyTorchLibrary,
    play: Callable[[Script], FakeWorker],
    workflow_folder: Path,
) -> None:
    worker = play(finish)
    library.settings.get_parameter('training', 'epochs').set_value(3)
    train(supervised, workflow_folder, workflow_folder)
    assert worker.jobs[0].config.training.epochs == 3
    assert worker.jobs[0].config.model.model_type == 'supervised'


def test_training_passes_progress_losses_and_log_on(
    pinn: PtychoPINNReconstructor,
    play: Callable[[Script], FakeWorker],
    workflow_folder: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def script(job: Job) -> Generator[Message, None, None]:
        yield Progress(5, 40)
        yield Losses(1, 0.5, 0.75)
        yield LogRecord(logging.WARNING, 'ptychopinn_torch_plugin.training', 'a word from the worker')
        yield Progress(20, 40)
        yield Losses(2, 0.25, None)
        yield Heartbeat()
        yield from finish(job)

    play(script)

    with caplog.at_level(logging.INFO):
        outputs = train(pinn, workflow_folder, workflow_folder)

    assert outputs[0] == TrainOutput((), (), 0)
    assert TrainOutput((LossValue(1, 0.5),), (LossValue(1, 0.75),), 5) in outputs
    assert list(outputs[-1].training_loss) == [LossValue(1, 0.5), LossValue(2, 0.25)]
    assert list(outputs[-1].validation_loss) == [LossValue(1, 0.75)]
    assert ('ptychopinn_torch_plugin', logging.WARNING, 'a word from the worker') in caplog.record_tuples


def test_stopped_training_keeps_the_model_written_on_stop(
    pinn: PtychoPINNReconstructor, play: Callable[[Script], FakeWorker], workflow_folder: Path
) -> None:
    def script(job: Job) -> Generator[Message, None, None]:
        assert job.output_folder is not None

        try:
            while True:
                yield Heartbeat()
        finally:
            write_model(job.output_folder / 'model.safetensors', job.config)

    worker = play(script)

    with closing(pinn.train(workflow_folder, workflow_folder)) as outputs:  # type: ignore[type-var]
        for _ in range(3):
            next(outputs)

    assert worker.ended == 1
    assert pinn.is_model_loaded()
    assert not worker.jobs[0].folder.exists()


def test_stop_without_a_model_keeps_the_one_loaded_before(
    pinn: PtychoPINNReconstructor, play: Callable[[Script], FakeWorker], workflow_folder: Path, model_file: Path
) -> None:
    def script(job: Job) -> Generator[Message, None, None]:
        while True:
            yield Heartbeat()

    play(script)
    stale = workflow_folder / 'model.safetensors'
    write_model(stale, Config(model=ModelConfig(model_type='supervised')))
    pinn.load_model_from_file(model_file)

    with closing(pinn.train(workflow_folder, workflow_folder)) as outputs:  # type: ignore[type-var]
        next(outputs)
        next(outputs)

    pinn.save_model(workflow_folder / 'saved.safetensors')
    assert (workflow_folder / 'saved.safetensors').read_bytes() == model_file.read_bytes()


def test_training_without_a_model_is_an_error(
    pinn: PtychoPINNReconstructor, play: Callable[[Script], FakeWorker], workflow_folder: Path
) -> None:
    def script(job: Job) -> Generator[Message, None, None]:
        yield Finished()

    play(script)

    with pytest.raises(TrainingError, match='without a model'):
        train(pinn, workflow_folder, workflow_folder)

    assert not pinn.is_model_loaded()


def test_failure_is_raised_and_shown_in_the_log_of_the_library(
    pinn: PtychoPINNReconstructor,
    play: Callable[[Script], FakeWorker],
    workflow_folder: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def script(job: Job) -> Generator[Message, None, None]:
        yield Progress(1, 2)
        raise WorkerError('The worker was killed; try a smaller batch size.')

    play(script)

    with pytest.raises(WorkerError):
        train(pinn, workflow_folder, workflow_folder)

    assert ('ptychopinn_torch_plugin', logging.ERROR) in [record[:2] for record in caplog.record_tuples]
    assert 'smaller batch size' in caplog.text


def test_settings_out_of_range_are_refused_before_the_worker_starts(
    pinn: PtychoPINNReconstructor,
    library: PtychoPINNPyTorchLibrary,
    play: Callable[[Script], FakeWorker],
    workflow_folder: Path,
) -> None:
    worker = play(finish)
    library.settings.get_parameter('training', 'accelerator').set_value('abacus')

    with pytest.raises(ConfigurationError, match='accelerator'):
        train(pinn, workflow_folder, workflow_folder)

    assert worker.jobs == []


def test_progress_goal_is_positive_from_the_start(pinn: PtychoPINNReconstructor) -> None:
    assert pinn.get_progress_goal() == 1


# Which data


def test_training_files_come_first(
    pinn: PtychoPINNReconstructor,
    play: Callable[[Script], FakeWorker],
    workflow_folder: Path,
    reconstruct_input: ReconstructInput,
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = play(finish)
    pinn.export_training_data(workflow_folder / 'b.npz', reconstruct_input)
    pinn.export_training_data(workflow_folder / 'a.npz', reconstruct_input)
    np.savez(workflow_folder / 'other.npz', numbers=np.arange(3))

    with caplog.at_level(logging.INFO):
        train(pinn, workflow_folder, workflow_folder)

    assert len(worker.scan_names[0]) == 2
    assert 'a.npz, b.npz' in caplog.text
    assert 'other.npz holds no array "diff3d"' in caplog.text


def test_export_is_read_back_unchanged(
    pinn: PtychoPINNReconstructor,
    play: Callable[[Script], FakeWorker],
    tmp_path: Path,
    reconstruct_input: ReconstructInput,
) -> None:
    seen = []

    def script(job: Job) -> Generator[Message, None, None]:
        seen.append(np.load(job.folder / 'scans' / '000' / 'counts.npy'))
        yield from finish(job)

    play(script)
    pinn.export_training_data(tmp_path / 'export.npz', reconstruct_input)
    train(pinn, tmp_path, tmp_path)
    np.testing.assert_array_equal(seen[0], reconstruct_input.diffraction_patterns)


def test_workflow_folder_comes_second(
    pinn: PtychoPINNReconstructor,
    play: Callable[[Script], FakeWorker],
    workflow_folder: Path,
    reconstruct_input: ReconstructInput,
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = play(finish)

    with caplog.at_level(logging.INFO), pinn.begin_host_run(HostRun(reconstruct_input, False)):
        train(pinn, workflow_folder, workflow_folder)

    assert len(worker.scan_names[0]) == 1
    assert 'Training data: diffraction.h5 and product.h5' in caplog.text


def test_selected_product_comes_third(
    pinn: PtychoPINNReconstructor,
    play: Callable[[Script], FakeWorker],
    tmp_path: Path,
    reconstruct_input: ReconstructInput,
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = play(finish)

    with caplog.at_level(logging.INFO), pinn.begin_host_run(HostRun(reconstruct_input, False)):
        train(pinn, tmp_path, tmp_path)

    assert len(worker.scan_names[0]) == 1
    assert 'the selected product "sample"' in caplog.text


def test_no_data_is_refused_with_what_was_looked_for(pinn: PtychoPINNReconstructor, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r'diff3d.*diffraction\.h5.*product\.h5'):
        train(pinn, tmp_path, tmp_path)


def test_input_of_the_host_is_released_after_the_run(
    pinn: PtychoPINNReconstructor, tmp_path: Path, reconstruct_input: ReconstructInput
) -> None:
    with pinn.begin_host_run(HostRun(reconstruct_input, False)):
        pass

    with pytest.raises(InputError):
        train(pinn, tmp_path, tmp_path)


def test_damaged_training_file_is_refused_by_name(pinn: PtychoPINNReconstructor, workflow_folder: Path) -> None:
    (workflow_folder / 'half.npz').write_bytes(b'PK\x03\x04 and then the disk was full')

    with pytest.raises(InputError, match=r'half\.npz'):
        train(pinn, workflow_folder, workflow_folder)


# Inference


def with_previews(job: Job) -> Generator[Message, None, None]:
    """Progress, a preview and heartbeats, then the result."""
    (shape,) = {scan_shape(job)}

    for step in (1, 2):
        yield Progress(step, 4)
        path = job.folder / f'preview{step}.npy'
        np.save(path, np.full(shape, step, dtype=np.complex64))
        yield Preview(path)
        yield Heartbeat()

    yield from finish(job)


def scan_shape(job: Job) -> tuple[int, int]:
    height, width = np.load(job.folder / 'scans' / '000' / 'object_guess.npy').shape
    return height, width


def infer(
    reconstructor: PtychoPINNReconstructor, parameters: ReconstructInput, run: HostRun
) -> list[ReconstructOutput]:
    with reconstructor.begin_host_run(run):
        return list(reconstructor.reconstruct(parameters))


def test_inference_needs_a_model(pinn: PtychoPINNReconstructor, reconstruct_input: ReconstructInput) -> None:
    with pytest.raises(ModelNotLoadedError, match=r'train one first, or load one.*model\.safetensors'):
        list(pinn.reconstruct(reconstruct_input))


def test_batch_mode_gets_the_result_only(
    pinn: PtychoPINNReconstructor,
    play: Callable[[Script], FakeWorker],
    reconstruct_input: ReconstructInput,
    model_file: Path,
    tmp_path: Path,
) -> None:
    worker = play(with_previews)
    pinn.load_model_from_file(model_file)
    (output,) = infer(pinn, reconstruct_input, BATCH)

    assert output.progress == pinn.get_progress_goal() == 10
    assert worker.jobs[0].config.inference.preview_interval == 0
    assert worker.jobs[0].model_file == model_file
    np.testing.assert_array_equal(output.product.object_.get_array(), 0.5j)
    np.testing.assert_array_equal(output.product.probes.get_array(), 2.0)
    assert [loss.value for loss in output.product.losses] == [loss.training for loss in LOSSES]

    save_product(tmp_path / 'product.h5', output.product)
    assert load_product(tmp_path / 'product.h5').metadata == reconstruct_input.product.metadata


def test_caller_that_says_nothing_gets_the_result_only(
    pinn: PtychoPINNReconstructor,
    play: Callable[[Script], FakeWorker],
    reconstruct_input: ReconstructInput,
    model_file: Path,
) -> None:
    play(with_previews)
    pinn.load_model_from_file(model_file)
    assert len(list(pinn.reconstruct(reconstruct_input))) == 1


def test_window_gets_previews_and_the_chance_to_stop(
    pinn: PtychoPINNReconstructor,
    play: Callable[[Script], FakeWorker],
    reconstruct_input: ReconstructInput,
    model_file: Path,
) -> None:
    worker = play(with_previews)
    pinn.load_model_from_file(model_file)
    outputs = infer(pinn, reconstruct_input, INTERACTIVE)
    values = [complex(output.product.object_.get_array()[0, 0, 0]) for output in outputs]

    assert worker.jobs[0].config.inference.preview_interval == Config().inference.preview_interval
    assert outputs[0].product is reconstruct_input.product
    assert values == [1, 1, 1, 1, 2, 2, 2, 2, 0.5j]
    assert [output.progress for output in outputs] == [1, 1, 1, 2, 2, 2, 10, 10, 10]


def test_stopping_inference_ends_the_worker(
    pinn: PtychoPINNReconstructor,
    play: Callable[[Script], FakeWorker],
    reconstruct_input: ReconstructInput,
    model_file: Path,
) -> None:
    def script(job: Job) -> Generator[Message, None, None]:
        while True:
            yield Heartbeat()

    worker = play(script)
    pinn.load_model_from_file(model_file)

    with pinn.begin_host_run(INTERACTIVE):
        outputs = pinn.reconstruct(reconstruct_input)
        next(outputs)
        del outputs  # the host drops the generator

    assert worker.ended == 1
    assert not worker.jobs[0].folder.exists()


def test_progress_reaches_the_window_twice_a_second_and_no_more() -> None:
    def received() -> Generator[Message, None, None]:
        yield from (Progress(step, 100) for step in range(100))

    times = (0.1 * tick for tick in range(1000))
    progress = RunProgress()
    passed = list(module.filter_messages(received(), progress, clock=lambda: next(times)))
    assert [message.done for message in passed if isinstance(message, Progress)] == list(range(4, 100, 5))
    assert (progress.done, progress.goal) == (99, 100)


def test_products_are_yielded_no_faster_than_the_window_shows_them() -> None:
    now = 100.0
    shown: list[Callable[[], None]] = []
    pace = module.ProductPacer(shown.append, clock=lambda: now)
    assert pace.is_due()

    pace.begin()
    now += 3.0
    assert not pace.is_due()
    shown.pop()()  # the window needed three seconds, and gets three for its user
    now += 2.9
    assert not pace.is_due()
    now += 0.2
    assert pace.is_due()

    pace.begin()
    now += module._SHOW_TIMEOUT_S
    assert pace.is_due()  # nobody shows anything: Stop is looked at all the same


# Model files


def test_model_of_the_other_kind_is_refused(supervised: PtychoPINNReconstructor, model_file: Path) -> None:
    with pytest.raises(ModelFileError, match='"pinn", this reconstructor \\(Supervised\\) needs "supervised"'):
        supervised.load_model_from_file(model_file)

    assert not supervised.is_model_loaded()


def test_model_overwritten_by_the_other_kind_is_refused_at_inference(
    pinn: PtychoPINNReconstructor, model_file: Path, reconstruct_input: ReconstructInput
) -> None:
    pinn.load_model_from_file(model_file)
    write_model(model_file, Config(model=ModelConfig(model_type='supervised')))

    with pytest.raises(ModelFileError, match='supervised'):
        list(pinn.reconstruct(reconstruct_input))


def test_file_of_another_format_is_refused(pinn: PtychoPINNReconstructor, tmp_path: Path) -> None:
    path = tmp_path / 'model.ckpt'
    path.write_bytes(b'\x80\x02 a pickle')

    with pytest.raises(ModelFileError):
        pinn.load_model_from_file(path)


def test_save_replaces_the_target_at_once(pinn: PtychoPINNReconstructor, model_file: Path, tmp_path: Path) -> None:
    target = tmp_path / 'copy.safetensors'
    target.write_text('an old model')
    pinn.load_model_from_file(model_file)
    pinn.save_model(target)
    pinn.save_model(model_file)  # onto itself: nothing to do

    assert target.read_bytes() == model_file.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ['a model.safetensors', 'copy.safetensors']


def test_save_needs_a_model(pinn: PtychoPINNReconstructor, model_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotLoadedError, match='to save'):
        pinn.save_model(tmp_path / 'none.safetensors')

    pinn.load_model_from_file(model_file)
    model_file.unlink()

    with pytest.raises(ModelNotLoadedError, match='moved or deleted'):
        pinn.save_model(tmp_path / 'none.safetensors')


def test_names_of_files_fit_the_host(pinn: PtychoPINNReconstructor) -> None:
    assert pinn.get_model_file_extension() == '.safetensors'
    assert pinn.get_model_file_filter() == 'PtychoPINN (PyTorch) Models (*.safetensors)'
    assert pinn.get_training_data_file_filter() == 'PtychoPINN Training Data (*.npz)'
