"""What a call changes in torch does not reach the next call of the process."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from ptychopinn_torch_plugin.engines.call_state import as_in_new_process


def settings_of_torch() -> tuple[object, ...]:
    return (
        torch.get_deterministic_debug_mode(),
        torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        torch.get_num_threads(),
        torch.get_default_dtype(),
        torch.get_float32_matmul_precision(),
        torch.is_grad_enabled(),
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.allow_tf32,
    )


@pytest.fixture
def defaults() -> Iterator[None]:
    """Torch's own defaults, whatever the tests before this one have set."""
    with as_in_new_process(), torch.enable_grad():
        torch.set_deterministic_debug_mode('default')
        torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
        torch.set_default_dtype(torch.float32)
        torch.set_float32_matmul_precision('highest')
        yield


@pytest.mark.usefixtures('defaults')
def test_settings_and_random_numbers_are_those_of_a_new_process() -> None:
    before = settings_of_torch()
    drawn = []
    for _ in range(2):
        with as_in_new_process():
            drawn.append((torch.rand(3).tolist(), torch.initial_seed()))
            random.seed(0)
            np.random.seed(0)
            torch.manual_seed(1)
            torch.set_deterministic_debug_mode('warn')
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
            torch.set_num_threads(before[2] + 1)  # type: ignore[operator]
            torch.set_default_dtype(torch.float64)
            torch.set_float32_matmul_precision('medium')
            torch.set_grad_enabled(False)
            torch.backends.cudnn.benchmark = not before[6]
            torch.backends.cudnn.deterministic = not before[7]
            torch.backends.cudnn.allow_tf32 = not before[8]
            changed = settings_of_torch()
        assert all(one != other for one, other in zip(before, changed, strict=True))
        assert settings_of_torch() == before
    assert drawn[0] == drawn[1]
    states = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    random.seed(0)
    np.random.seed(0)
    assert states[0] != random.getstate()
    assert states[1] != np.random.get_state()[1].tolist()  # type: ignore[index]
