"""The contract of the entry-point group ``ptychodus.reconstructors``.

Another package can follow it without importing this one; ``docs/entry-points.md`` describes it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from ptychodus.api.reconstruct import ReconstructInput, ReconstructorLibrary
    from ptychodus.api.settings import SettingsRegistry
    from ptychodus.controller.data import FileDialogFactory
    from ptychodus.controller.processing import ReconstructorViewControllerFactory
    from ptychodus.model.processing import ProcessingTaskMonitor
    from ptychodus.model.processing.api import ProcessingAlgorithmParameter
    from ptychodus.model.product import ProductRepository
    from ptychodus.view.processing import ProcessingStatusView

ENTRY_POINT_GROUP: Final = 'ptychodus.reconstructors'


def call_now(function: Callable[[], None]) -> None:
    """Call ``function``: where no window has to show anything first."""
    function()


def never_stop() -> bool:
    """Return False: where nothing but the host's own Stop ends a run early."""
    return False


class ReconstructorPlugin(Protocol):
    """Object that an entry point of the group names: a module, an instance or a class."""

    def create_library(
        self, settings_registry: SettingsRegistry, is_developer_mode_enabled: bool
    ) -> ReconstructorLibrary:
        """Return a new library, once per host model; it creates its settings groups in ``settings_registry``.

        The library's name must contain no underscore (the host splits its algorithm keys there). Neither Qt nor a
        GPU library may be imported.
        """

    def create_view_controller_factory(
        self, library: ReconstructorLibrary, file_dialog_factory: FileDialogFactory
    ) -> ReconstructorViewControllerFactory:
        """Return the factory of the library's panels; called only when the window opens, so it may import Qt."""


@dataclass(frozen=True, eq=False)
class HostRun:
    """One call of a reconstructor by the host, with what the host does not pass on itself."""

    training_input: ReconstructInput | None
    """Input prepared from the product selected for training; None for a reconstruction."""

    writes_intermediate_products: bool
    """True where the host writes every yielded product to a file (batch mode): yield previews there only if the user
    asks for them."""

    call_when_shown: Callable[[Callable[[], None]], None] = call_now
    """Calls a function in the window's thread once everything yielded so far is displayed. The host redraws its window
    for every product; a reconstructor that yields faster than that freezes the window, Stop button included."""

    output_folder: Path | None = None
    """Folder that the host writes the products of a reconstruction into; None where it writes none (the window)."""

    should_stop: Callable[[], bool] = never_stop
    """Returns True once Ctrl-C or a scheduler's signal has requested a stop (batch mode): finish early, keep the result
    so far, yield it and return. Stop in the window closes the generator instead."""


@runtime_checkable
class HostRunAware(Protocol):
    """Reconstructor that uses :class:`HostRun`; implementing this is optional.

    One that does must observe ``HostRun.should_stop``: while it runs in batch mode, Ctrl-C does nothing else.
    """

    def begin_host_run(self, run: HostRun) -> AbstractContextManager[None]:
        """Begin the call described by ``run``; the host leaves the returned context when the call has ended."""


Action = Literal['train', 'reconstruct']


@runtime_checkable
class RunChecking(Protocol):
    """Reconstructor that can refuse a run before the host makes anything for it; implementing this is optional."""

    def check_run(self, action: Action, output_folder: Path | None) -> None:
        """Raise an error with one sentence if a run cannot begin now: no model, a wrong setting, a read-only folder.

        Called in the window's thread, or in the main thread of batch mode, so it must be quick. Without it, the host
        copies the product first and shows the error of the run in its terminal only.

        Args:
            action: what the run would do.
            output_folder: where it would write; None where it writes nothing (a reconstruction in the window).
        """


@dataclass(frozen=True, eq=False)
class HostWindow:
    """Parts of the host's window, and functions of its model, that a panel can use."""

    status_view: ProcessingStatusView
    """The plot, the log and the progress bar."""

    task_monitor: ProcessingTaskMonitor
    """Notifies its observers, in the window's thread, when progress was made and when a run begins or ends."""

    algorithm: ProcessingAlgorithmParameter
    """Which reconstructor is selected."""

    products: ProductRepository
    product_box: Any
    """The ``QComboBox`` in which a product is selected; its index is that of the product."""

    prepare_input: Callable[[int], ReconstructInput]
    """Return the input of a reconstructor for the product of an index; takes a second on a large scan."""

    load_folder: Callable[[Path], int]
    """Load patterns and product of a workflow folder as new ones, and return the index of the product."""


@runtime_checkable
class WindowAware(Protocol):
    """View controller factory that uses :class:`HostWindow`; implementing this is optional."""

    @property
    def name(self) -> str:
        """Name of the library, as of every factory."""

    def connect_window(self, window: HostWindow) -> None:
        """Use the window; called once, after its panels were created."""
