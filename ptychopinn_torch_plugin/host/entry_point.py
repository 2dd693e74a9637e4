"""This package's entry in the group ``ptychodus.reconstructors``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .contract import ReconstructorPlugin

if TYPE_CHECKING:
    from ptychodus.api.reconstruct import ReconstructorLibrary
    from ptychodus.api.settings import SettingsRegistry
    from ptychodus.controller.data import FileDialogFactory
    from ptychodus.controller.processing import ReconstructorViewControllerFactory


class PtychoPINNPyTorchPlugin:
    """The plug-in that the entry point names."""

    def create_library(
        self, settings_registry: SettingsRegistry, is_developer_mode_enabled: bool
    ) -> ReconstructorLibrary:
        """Return a new :class:`~ptychopinn_torch_plugin.host.library.PtychoPINNPyTorchLibrary`."""
        from .library import PtychoPINNPyTorchLibrary

        return PtychoPINNPyTorchLibrary(settings_registry)

    def create_view_controller_factory(
        self, library: ReconstructorLibrary, file_dialog_factory: FileDialogFactory
    ) -> ReconstructorViewControllerFactory:
        """Return the factory of the panels.

        Raises:
            TypeError: ``library`` was not made by this plug-in.
        """
        from .library import PtychoPINNPyTorchLibrary
        from .panel.factory import PtychoPINNViewControllerFactory

        if not isinstance(library, PtychoPINNPyTorchLibrary):
            raise TypeError(
                f'The panel belongs to {PtychoPINNPyTorchLibrary.__name__}, not to {type(library).__name__}.'
            )

        return PtychoPINNViewControllerFactory(library)


plugin: Final[ReconstructorPlugin] = PtychoPINNPyTorchPlugin()
