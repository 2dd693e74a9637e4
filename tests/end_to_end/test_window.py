"""The real window with the real worker and the real engine: train, infer, save, load, infer again, stop."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

pytest.importorskip('PyQt5')

from ptychodus.api.product import Product
from ptychodus.api.reconstruct import TrainableReconstructor

from ptychopinn_torch_plugin.errors import ModelFileError
from ptychopinn_torch_plugin.metrics import r_factor
from ptychopinn_torch_plugin.storage.model_file import read_model_header
from ptychopinn_torch_plugin.worker.parent import end_kept_worker

from .conftest import TrainedWindow
from .window import PINN, QUICK, SUPERVISED, PtychodusWindow, worker_processes

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = Path(__file__).parents[2]
STOP_WITHIN_S = 10.0
ENDLESS = 100_000
"""Epochs of a training that would take an hour."""


@pytest.fixture(autouse=True)
def _settings_and_children(real_window: PtychodusWindow) -> Iterator[None]:
    """Begin with the quick settings; leave neither an error dialog unexplained nor a process behind."""
    end_kept_worker()
    before = worker_processes()
    real_window.set_values(QUICK)
    real_window.dialogs.clear()
    yield
    if real_window.monitor.is_processing:  # the test has failed half-way
        real_window.press_stop()
    assert not real_window.dialogs
    end_kept_worker()
    assert worker_processes() == before


def product_at(window: PtychodusWindow, index: int) -> Product:
    return window.products[index].get_product()


def infer(trained: TrainedWindow) -> int:
    """Press Infer on the scan's own product, wait for the end, and return the index of the result."""
    window = trained.window
    window.product_box().setCurrentIndex(trained.product_index)
    with window.finished_run():
        index = window.press_infer()
    window.monitor.raise_if_failed()
    return index


def is_flat(product: Product) -> bool:
    return bool((product.object_.get_array() == 1).all())


def test_train_button_on_a_folder_without_data_trains_on_the_selected_product(trained_window: TrainedWindow) -> None:
    window = trained_window.window
    window.choose_algorithm(PINN)
    assert window.monitor.get_last_error() is None
    assert 'Training data: the selected product "simulated"' in trained_window.log
    for epoch in (1, 2, 3):
        assert f'Epoch {epoch} of 3: loss' in trained_window.log
    assert not trained_window.was_infer_enabled
    assert window.actions.reconstruct_button.isEnabled()
    header = read_model_header(trained_window.folder / 'model.safetensors')
    assert header.config.training.epochs == 3


def test_infer_button_brings_a_product_with_the_losses_of_the_training(trained_window: TrainedWindow) -> None:
    window = trained_window.window
    window.choose_algorithm(PINN)
    index = infer(trained_window)
    given, found = product_at(window, trained_window.product_index), product_at(window, index)

    assert is_flat(given)
    api = window.model.processing_core.processing_api
    flat, residual = (
        r_factor(api.get_reconstruct_input(product_index=i)) for i in (trained_window.product_index, index)
    )
    assert residual < 0.5 * flat

    assert list(found.probe_positions) == list(given.probe_positions)
    assert found.probes.get_array().shape == given.probes.get_array().shape
    assert found.probes.get_pixel_geometry() == given.probes.get_pixel_geometry()
    assert found.object_.get_geometry() == given.object_.get_geometry()
    assert found.metadata.photon_energy_eV == given.metadata.photon_energy_eV

    assert window.product_box().currentIndex() == index
    assert 'pinn' in window.products[index].get_name()
    assert window.plotted_epochs() == [1, 2]  # of the refinement
    window.product_box().setCurrentIndex(trained_window.product_index)
    assert window.plotted_epochs() == [1, 2, 3, 1, 2, 3]  # training and validation
    legend = window.status.axes.get_legend()
    assert legend is not None
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == ['training', 'validation (held-out positions)']
    assert 'Deviance' in window.status.axes.get_ylabel()
    assert [f'{loss.value:.4f}' in trained_window.log for loss in found.losses] == [True] * 3

    kept = worker_processes()
    again = product_at(window, infer(trained_window))
    assert worker_processes() == kept, 'the worker of the first inference serves the second'
    assert np.array_equal(again.object_.get_array(), found.object_.get_array())


def test_a_saved_model_gives_the_same_object_in_a_new_process(
    trained_window: TrainedWindow, window_scan: Path, tmp_path: Path
) -> None:
    window = trained_window.window
    window.choose_algorithm(PINN)
    found = product_at(window, infer(trained_window))
    model_file, result = tmp_path / 'kept.safetensors', tmp_path / 'again.npz'
    window.model.processing_core.processing_api.save_model_to_file(model_file)

    command = [sys.executable, '-m', 'tests.end_to_end.infer_again', str(window_scan), str(model_file), str(result)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr

    # One thread, one machine, the same weights: bit for bit the same, not merely close.
    with np.load(result) as again:
        assert np.array_equal(again['object_array'], found.object_.get_array())
        assert np.array_equal(again['probe'], found.probes.get_array())
        assert again['losses'].tolist() == [loss.value for loss in found.losses]
        assert again['epochs'].tolist() == [1, 2], 'the curve is that of the refinement'


def test_stop_ends_a_training_and_keeps_its_model(trained_window: TrainedWindow, tmp_path: Path) -> None:
    window = trained_window.window
    window.choose_algorithm(PINN)
    window.set_values({'Training': {'epochs': ENDLESS}})
    window.product_box().setCurrentIndex(trained_window.product_index)
    window.clear_log()
    before = worker_processes()

    window.press_train(tmp_path)
    window.wait(lambda: f'Epoch 3 of {ENDLESS}' in window.log_text(), 'three epochs')
    assert worker_processes() > before
    assert 0 < window.status.progress_bar.value() < window.status.progress_bar.maximum()
    assert f'of {ENDLESS}' in window.status.progress_bar.format()
    window.wait(lambda: window.plotted_epochs()[:2] == [1, 2], 'two epochs in the plot')
    assert window.status.axes.get_title().startswith('Training, epoch')
    assert window.press_stop() < STOP_WITHIN_S
    window.settle()

    assert worker_processes() == before
    assert window.monitor.get_last_error() is None
    assert window.status.stop_button.isHidden()
    assert f'The PINN model {tmp_path / "model.safetensors"} is loaded.' in window.log_text()
    assert 3 <= len(read_model_header(tmp_path / 'model.safetensors').history) < ENDLESS
    reconstructor = window.model.processing_core.algorithm_parameter.get_current_reconstructor()
    assert isinstance(reconstructor, TrainableReconstructor)
    assert reconstructor.is_model_loaded()
    assert not is_flat(product_at(window, infer(trained_window)))


def test_stop_ends_an_inference_and_keeps_the_picture_so_far(trained_window: TrainedWindow) -> None:
    """Redrawing the previews must leave the window time for its user, or nobody could press Stop."""
    window = trained_window.window
    window.choose_algorithm(PINN)
    window.set_values({'Inference': {'steps': 1000, 'window_size': 2}})
    window.product_box().setCurrentIndex(trained_window.product_index)
    before = worker_processes()

    index = window.press_infer()
    window.wait(lambda: not is_flat(product_at(window, index)), 'the first preview')
    assert worker_processes() > before
    goal = window.monitor.get_progress_goal()
    assert 0 < window.monitor.get_progress() < goal / 2
    assert window.press_stop() < STOP_WITHIN_S
    window.settle()

    assert worker_processes() == before
    assert window.monitor.get_last_error() is None
    assert window.monitor.get_progress() < goal
    assert not is_flat(product_at(window, index))
    assert window.actions.reconstruct_button.isEnabled()


def test_a_missing_and_a_wrong_model_are_explained_and_the_window_lives_on(trained_window: TrainedWindow) -> None:
    window = trained_window.window
    window.choose_algorithm(SUPERVISED)
    window.product_box().setCurrentIndex(-1)
    window.product_box().setCurrentIndex(trained_window.product_index)  # the host enables Infer for any model here
    assert not window.actions.reconstruct_button.isEnabled()  # by itself the host enables it here

    window.press_load_model(trained_window.folder / 'model.safetensors')
    ((actor, error),) = window.dialogs
    window.dialogs.clear()
    assert actor == 'Load Model'
    assert isinstance(error, ModelFileError)
    assert '"pinn"' in str(error)
    assert 'choose the other reconstructor' in str(error)

    window.choose_algorithm(PINN)
    assert not is_flat(product_at(window, infer(trained_window)))
