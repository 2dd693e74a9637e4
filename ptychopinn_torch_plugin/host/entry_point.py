"""The contract of the entry-point group ``ptychodus.reconstructors``, and this package's entry in it.

The contract is small enough that another package can follow it without importing this one; ``docs/entry-points.md``
tells how.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

if TYPE_CHECKING:
    from ptychodus.api.reconstruct import ReconstructInput, ReconstructorLibrary
    from ptychodus.api.settings import SettingsRegistry
    from ptychodus.controller.data import FileDialogFactory
    from ptychodus.controller.processing import ReconstructorViewControllerFactory

ENTRY_POINT_GROUP: Final = 'ptychodus.reconstructors'


def _call_at_once(function: Callable[[], None]) -> None:
    function()


class ReconstructorPlugin(Protocol):
    """What an entry point of the group ``ptychodus.reconstructors`` names: a module, an instance or a class."""

    def create_library(
        self, settings_registry: SettingsRegistry, is_developer_mode_enabled: bool
    ) -> ReconstructorLibrary:
        """Build the library once per host model; it creates its settings groups in ``settings_registry``.

        The library's name must contain no underscore (the host splits its algorithm keys there). Neither Qt nor a
        GPU library may be imported.
        """

    def create_view_controller_factory(
        self, library: ReconstructorLibrary, file_dialog_factory: FileDialogFactory
    ) -> ReconstructorViewControllerFactory:
        """Build the factory of the library's panels; called only when the window opens, so it may import Qt."""


@dataclass(frozen=True, eq=False)
class HostRun:
    """What the host knows about a call and does not pass on itself."""

    training_input: ReconstructInput | None
    """Input prepared from the product selected for training; None for a reconstruction."""

    writes_intermediate_products: bool
    """True where the host writes every yielded product to a file (batch mode), so previews are wanted only if the user
    asks for them."""

    call_when_shown: Callable[[Callable[[], None]], None] = _call_at_once
    """Call a function in the window's thread once everything yielded so far is on display. The host redraws its window
    for every product; a reconstructor that yields faster than that freezes the window, Stop button included."""

    output_folder: Path | None = None
    """Folder that the host writes the products of a reconstruction into; None where it writes none (the window)."""


@runtime_checkable
class HostRunAware(Protocol):
    """A reconstructor that wants to know about the host's call; implementing it is optional."""

    def begin_host_run(self, run: HostRun) -> AbstractContextManager[None]:
        """Enter the call described by ``run``; the host leaves the returned context when the call has ended."""


class PtychoPINNPyTorchPlugin:
    """This package's entry in the group."""

    def create_library(
        self, settings_registry: SettingsRegistry, is_developer_mode_enabled: bool
    ) -> ReconstructorLibrary:
        """Build :class:`~ptychopinn_torch_plugin.host.library.PtychoPINNPyTorchLibrary`."""
        from .library import PtychoPINNPyTorchLibrary

        return PtychoPINNPyTorchLibrary(settings_registry)

    def create_view_controller_factory(
        self, library: ReconstructorLibrary, file_dialog_factory: FileDialogFactory
    ) -> ReconstructorViewControllerFactory:
        """Build the factory of the two panels.

        Raises:
            TypeError: ``library`` was not made by this plug-in.
        """
        from .library import PtychoPINNPyTorchLibrary
        from .panel import PtychoPINNViewControllerFactory

        if not isinstance(library, PtychoPINNPyTorchLibrary):
            raise TypeError(
                f'The panel belongs to {PtychoPINNPyTorchLibrary.__name__}, not to {type(library).__name__}.'
            )

        return PtychoPINNViewControllerFactory(library)


plugin: Final[ReconstructorPlugin] = PtychoPINNPyTorchPlugin()
