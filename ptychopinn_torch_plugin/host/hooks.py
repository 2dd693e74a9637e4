"""Make Ptychodus 1.7 read the entry-point group ``ptychodus.reconstructors``.

Ptychodus 1.7 has its list of reconstructor libraries, and that of their panels, in its source. This module wraps the
methods to which those lists are passed, after it has checked that they are the expected ones. If they are not, it logs
one warning and changes nothing. It never raises into the host, and importing it loads nothing but wrapt.

These methods of the host are wrapped:

- ``ProcessingCore.__init__``: the libraries of the group are appended to the host's own;
- ``TrainBackgroundTask.__call__`` and ``ReconstructBackgroundTask.__call__``: a reconstructor that implements
  :class:`~ptychopinn_torch_plugin.host.contract.HostRunAware` receives what the host knows about the call;
- ``ProcessingAPI.train`` and ``ProcessingAPI.reconstruct``: a reconstructor that implements
  :class:`~ptychopinn_torch_plugin.host.contract.RunChecking` can refuse the run before the host makes anything; while
  the main thread waits for a run, Ctrl-C and the signals of schedulers stop it in order;
- ``SettingsRegistry.open_settings``: misspelt names of this package are warnings;
- ``ConcreteWorkflowAPI.__init__``: the host's interface for scripts loads what an inspection has written;
- ``ModelCore.batch_mode_execute``: ends with the host's code for an interrupted run after a signal, and with that of
  wrong usage for misspelt names or an output folder that cannot be made;
- ``ProcessingController.__init__``, once the window is imported: the panels are appended, and the Infer button is
  updated when a run has ended (the host itself updates it only when the run starts).
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary, ref

import wrapt

from .contract import (
    ENTRY_POINT_GROUP,
    HostRun,
    HostRunAware,
    HostWindow,
    ReconstructorPlugin,
    RunChecking,
    WindowAware,
    call_now,
    never_stop,
)
from .interruption import RunInterruptedError, StopRequest, stop_on_signals

if TYPE_CHECKING:
    from ptychodus.api.exit_codes import ExitCode
    from ptychodus.api.reconstruct import ReconstructorLibrary
    from ptychodus.api.settings import SettingsRegistry
    from ptychodus.api.workflow import WorkflowAPI
    from ptychodus.controller.processing import ProcessingController, ReconstructorViewControllerFactory
    from ptychodus.model import ModelCore
    from ptychodus.model.processing import ProcessingAPI
    from ptychodus.model.processing.api import ProcessingAlgorithmParameter
    from ptychodus.model.processing.core import ProcessingCore
    from ptychodus.model.processing.monitor import ProcessingTaskMonitor
    from ptychodus.model.task_manager import ForegroundTaskManager

logger = logging.getLogger(__name__)

MARKER: Final = '_reads_reconstructor_entry_points'
"""Attribute that a class of the host carries once its lists include the group, whoever did it."""

_MODEL_LOGGER: Final = 'ptychodus.model.core'

Loaded = tuple[ReconstructorPlugin, 'ReconstructorLibrary']


@dataclasses.dataclass(eq=False)
class _HostModel:
    """What the hooks remember of one host model."""

    loaded: list[Loaded]
    """Plug-ins of the group, and their libraries in this model."""

    algorithm: ref[ProcessingAlgorithmParameter]
    """Which reconstructor is selected; its observers refer to the objects by which the models are found."""

    task_manager: ForegroundTaskManager
    """Runs functions in the window's thread."""

    workflow: ref[WorkflowAPI] | None = None
    """The host's own interface for scripts, which holds the objects by which the models are found."""

    stop_request: StopRequest | None = None
    """The one of the run that the main thread waits for."""

    is_batch: bool = False
    """Whether batch mode is under way: a misspelt name then ends it."""

    misspelt: list[str] = dataclasses.field(default_factory=list)
    """Sentences about the misspelt names in the settings files that were read."""

    def refuse_misspelt(self) -> None:
        """End a batch run with misspelt names, unless it is one of another library that does not use them.

        Raises:
            MisspeltSettingsError: there are some that matter.
        """
        is_algorithm = any(sentence.startswith('There is no algorithm') for sentence in self.misspelt)
        if is_algorithm or (self.misspelt and self.selected() is not None):
            raise MisspeltSettingsError

    def owns(self, reconstructor: object) -> bool:
        """Return whether ``reconstructor`` is one of the group."""
        return any(reconstructor is own for _, library in self.loaded for own in library)

    def selected(self) -> object:
        """Return the selected reconstructor if it is one of the group, else None."""
        algorithm = self.algorithm()
        selected = None if algorithm is None else algorithm.get_current_reconstructor()
        return selected if self.owns(selected) else None


_MODELS: Final[WeakKeyDictionary[ProcessingAPI | ProcessingTaskMonitor | SettingsRegistry, _HostModel]] = (
    WeakKeyDictionary()
)
"""The host models of this process, by the objects of theirs that the wrapped methods see."""


class UnknownHostError(Exception):
    """The host's internals are not as this module expects."""


class MisspeltSettingsError(Exception):
    """A settings file of a batch run holds misspelt names."""


@functools.cache
def apply() -> None:
    """Install the hooks, once per process; they act when the host's model, and later its window, is imported."""
    wrapt.when_imported('ptychodus.model')(_on_model_imported)
    wrapt.when_imported('ptychodus.controller')(_on_controller_imported)


def _on_model_imported(_module: ModuleType) -> None:
    try:
        _wrap_model()
    except UnknownHostError as error:
        _warn(error, 'no reconstructor of that group is listed')


def _on_controller_imported(_module: ModuleType) -> None:
    try:
        _wrap_controller()
    except UnknownHostError as error:
        _warn(error, 'the panels of its reconstructors are not shown')


def _warn(error: UnknownHostError, consequence: str) -> None:
    logger.warning(
        'This version of Ptychodus is not one that the entry-point group "%s" is known to work with: %s. '
        'Ptychodus is left alone; %s. Remedy: pip install "ptychodus>=1.7,<1.8".',
        ENTRY_POINT_GROUP,
        error,
        consequence,
    )


# Checks before wrapping


def _require_class(module_name: str, class_name: str) -> type[Any]:
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UnknownHostError(f'module {module_name} was not found') from error

    cls = vars(module).get(class_name)

    if not isinstance(cls, type):
        raise UnknownHostError(f'class {module_name}.{class_name} was not found')

    return cls


def _require_parameters(cls: type[Any], names: tuple[str, ...]) -> None:
    known = inspect.signature(cls.__init__).parameters

    for name in names:
        if name not in known:
            raise UnknownHostError(f'{cls.__module__}.{cls.__qualname__}() takes no argument "{name}"')


def _require_attributes(cls: type[Any], names: tuple[str, ...]) -> None:
    known = {name for base in cls.__mro__ for name in vars(base)}

    if dataclasses.is_dataclass(cls):
        known |= {field.name for field in dataclasses.fields(cls)}

    for name in names:
        if name not in known:
            raise UnknownHostError(f'{cls.__module__}.{cls.__qualname__} has no "{name}"')


def _is_marked(cls: type[Any]) -> bool:
    return MARKER in vars(cls)


def _wrap_model() -> None:
    """Wrap the methods of the host that need no window, all of them or none.

    Raises:
        UnknownHostError: a class, an argument or an attribute is not there.
    """
    core = _require_class('ptychodus.model.processing.core', 'ProcessingCore')

    if _is_marked(core):
        return

    train_task = _require_class('ptychodus.model.processing.monitor', 'TrainBackgroundTask')
    reconstruct_task = _require_class('ptychodus.model.processing.monitor', 'ReconstructBackgroundTask')
    api = _require_class('ptychodus.model.processing.api', 'ProcessingAPI')
    parameter = _require_class('ptychodus.model.processing.api', 'ProcessingAlgorithmParameter')
    task_manager = _require_class('ptychodus.model.task_manager', 'ForegroundTaskManager')
    model = _require_class('ptychodus.model.core', 'ModelCore')
    workflow = _require_class('ptychodus.model.workflow', 'ConcreteWorkflowAPI')
    _require_class('ptychodus.api.exit_codes', 'ExitCode')
    registry = _require_class('ptychodus.api.settings', 'SettingsRegistry')
    _require_attributes(registry, ('open_settings',))
    _require_parameters(core, ('settings_registry', 'algorithm_libraries', 'task_manager'))
    _require_attributes(api, ('task_monitor', 'train', 'reconstruct', 'set_reconstructor_if_provided'))
    _require_attributes(parameter, ('get_current_reconstructor',))
    _require_attributes(task_manager, ('put_foreground_task',))
    _require_attributes(model, ('batch_mode_execute',))
    _require_parameters(workflow, ('settings_registry',))
    _require_attributes(workflow, ('load_assembled_diffraction_data', 'register_product'))
    _require_attributes(train_task, ('__call__', 'task_monitor', 'trainer', 'reconstruct_input'))
    _require_attributes(reconstruct_task, ('__call__', 'task_monitor', 'reconstructor', 'output_product_file'))

    wrapt.wrap_function_wrapper(core, '__init__', _init_processing_core)
    wrapt.wrap_function_wrapper(train_task, '__call__', _call_train_task)
    wrapt.wrap_function_wrapper(reconstruct_task, '__call__', _call_reconstruct_task)
    wrapt.wrap_function_wrapper(api, 'train', _run_with_signals)
    wrapt.wrap_function_wrapper(api, 'reconstruct', _run_with_signals)
    wrapt.wrap_function_wrapper(workflow, '__init__', _init_workflow)
    wrapt.wrap_function_wrapper(model, 'batch_mode_execute', _execute_batch)
    wrapt.wrap_function_wrapper(registry, 'open_settings', _open_settings)
    setattr(core, MARKER, True)


def _wrap_controller() -> None:
    """Wrap the methods of the host that belong to its window.

    Raises:
        UnknownHostError: a class, an argument or an attribute is not there.
    """
    controller = _require_class('ptychodus.controller.processing.core', 'ProcessingController')

    if _is_marked(controller):
        return

    api = _require_class('ptychodus.model.processing.api', 'ProcessingAPI')
    monitor = _require_class('ptychodus.model.processing.monitor', 'ProcessingTaskMonitor')
    _require_parameters(
        controller,
        (
            'algorithm_parameter',
            'processing_api',
            'product_repository',
            'status_view',
            'file_dialog_factory',
            'view_controller_factories',
        ),
    )
    _require_attributes(controller, ('_sync_model_to_view',))
    _require_attributes(api, ('task_monitor', 'get_reconstruct_input'))
    _require_attributes(monitor, ('add_observer', 'get_completed_runs'))

    wrapt.wrap_function_wrapper(controller, '__init__', _init_processing_controller)
    setattr(controller, MARKER, True)


# Libraries


def _bind(wrapped: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> inspect.BoundArguments:
    return inspect.signature(wrapped).bind(*args, **kwargs)


def _init_processing_core(
    wrapped: Callable[..., None], instance: ProcessingCore, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    bound = _bind(wrapped, args, kwargs)
    loaded = _load_libraries(bound.arguments['settings_registry'])
    bound.arguments['algorithm_libraries'] = [
        *bound.arguments['algorithm_libraries'],
        *(library for _, library in loaded),
    ]
    wrapped(*bound.args, **bound.kwargs)
    model = _HostModel(loaded, ref(instance.algorithm_parameter), bound.arguments['task_manager'])
    _MODELS[instance.processing_api] = model
    _MODELS[bound.arguments['settings_registry']] = model
    _MODELS[instance.processing_api.task_monitor] = model


def _init_workflow(
    wrapped: Callable[..., None], instance: WorkflowAPI, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    wrapped(*args, **kwargs)
    model = _MODELS.get(_bind(wrapped, args, kwargs).arguments['settings_registry'])

    if model is not None:
        model.workflow = ref(instance)


def _load_libraries(settings_registry: SettingsRegistry) -> list[Loaded]:
    """Return the library of every entry point; one that fails is left out with one warning."""
    is_developer_mode_enabled = logging.getLogger(_MODEL_LOGGER).getEffectiveLevel() <= logging.DEBUG
    loaded: list[Loaded] = []

    for entry_point in sorted(set(entry_points(group=ENTRY_POINT_GROUP)), key=lambda item: (item.name, item.value)):
        try:
            plugin: ReconstructorPlugin = entry_point.load()
            library = plugin.create_library(settings_registry, is_developer_mode_enabled)
            _check_library(library, [other for _, other in loaded])
        except Exception as error:
            _warn_entry_point(entry_point, 'its reconstructors are not listed', error)
        else:
            loaded.append((plugin, library))

    return loaded


def _check_library(library: ReconstructorLibrary, others: list[ReconstructorLibrary]) -> None:
    """Raise an error for a library from which the host could not build its algorithm keys."""
    from ptychodus.api.reconstruct import Reconstructor, ReconstructorLibrary

    if not isinstance(library, ReconstructorLibrary):
        raise TypeError(f'create_library returned {type(library).__name__}, not a ReconstructorLibrary')

    if '_' in library.name:
        raise ValueError(f'library name "{library.name}" contains an underscore, at which the host splits its keys')

    if library.name.casefold() in {other.name.casefold() for other in others}:
        raise ValueError(f'another entry point has a library of the name "{library.name}" already')

    for reconstructor in library:
        if not isinstance(reconstructor, Reconstructor):
            raise TypeError(f'library "{library.name}" holds {type(reconstructor).__name__}, not a Reconstructor')


def _warn_entry_point(entry_point: EntryPoint, consequence: str, error: Exception) -> None:
    package = entry_point.dist.name if entry_point.dist else 'an unknown package'
    logger.warning(
        'Entry point "%s = %s" (group %s, from %s) failed, %s: %s: %s',
        entry_point.name,
        entry_point.value,
        entry_point.group,
        package,
        consequence,
        type(error).__name__,
        error,
    )


# Calls


def _call_train_task(
    wrapped: Callable[..., None],
    instance: Any,  # noqa: ANN401 - the host's task, known by its checked attributes only
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> None:
    run = HostRun(instance.reconstruct_input, False, should_stop=_stop_function(_MODELS.get(instance.task_monitor)))

    _run_task(wrapped, instance.trainer, run, _MODELS.get(instance.task_monitor))


def _call_reconstruct_task(
    wrapped: Callable[..., None],
    instance: Any,  # noqa: ANN401 - the host's task, known by its checked attributes only
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> None:
    model = _MODELS.get(instance.task_monitor)
    file = instance.output_product_file
    run = HostRun(
        None,
        file is not None,
        call_when_shown=call_now if model is None else model.task_manager.put_foreground_task,
        output_folder=None if file is None else Path(file).absolute().parent,
        should_stop=_stop_function(model),
    )

    _run_task(wrapped, instance.reconstructor, run, model)


def _run_task(task: Callable[[], None], reconstructor: object, run: HostRun, model: _HostModel | None) -> None:
    """Run the host's task.

    The host logs an exception of a task with all arrays of its input. An error of a reconstructor of the group ends
    here instead: it is in the reconstructor's own log, and the host's monitor holds it for whoever waits for the run.
    """
    try:
        with _host_run(reconstructor, run):
            task()
    except Exception as error:
        if model is None or not model.owns(reconstructor):
            raise
        from ..errors import PtychoPINNError

        level = logging.DEBUG if isinstance(error, PtychoPINNError) else logging.ERROR
        logger.log(level, 'The run failed.', exc_info=error)


def _stop_function(model: _HostModel | None) -> Callable[[], bool]:
    return never_stop if model is None or model.stop_request is None else model.stop_request.is_made


def _host_run(reconstructor: object, run: HostRun) -> ExitStack:
    """Begin ``run`` in a reconstructor that implements ``HostRunAware``; closing the returned stack ends it."""
    stack = ExitStack()

    if isinstance(reconstructor, HostRunAware):
        try:
            stack.enter_context(reconstructor.begin_host_run(run))
        except Exception as error:
            logger.warning(
                'begin_host_run of %s failed: %s: %s', type(reconstructor).__name__, type(error).__name__, error
            )

    return stack


def _run_with_signals(
    wrapped: Callable[..., Any], instance: ProcessingAPI, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:  # noqa: ANN401 - what the host's method returns
    """Check a run before the host makes anything for it; while the host waits for it, signals stop it in order."""
    model = _MODELS.get(instance)
    arguments = _bind(wrapped, args, kwargs).arguments

    if model is None:
        return wrapped(*args, **kwargs)

    instance.set_reconstructor_if_provided(arguments.get('algorithm'))
    selected = model.selected()

    if isinstance(selected, RunChecking):
        file = arguments.get('output_product_file')
        folder = arguments.get('output_path') if file is None else Path(file).absolute().parent
        selected.check_run('train' if 'input_path' in arguments else 'reconstruct', folder)

    if not (arguments.get('block', False) and isinstance(selected, HostRunAware)):
        return wrapped(*args, **kwargs)

    with stop_on_signals() as stop_request:
        model.stop_request = stop_request

        try:
            return wrapped(*args, **kwargs)
        finally:
            model.stop_request = None


def _open_settings(
    wrapped: Callable[..., None], instance: SettingsRegistry, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    """Read a settings file, and warn of misspelt names of this package in it.

    Raises:
        MisspeltSettingsError: there are some, and the file is that of a batch run.
    """
    wrapped(*args, **kwargs)
    model = _MODELS.get(instance)
    algorithm = None if model is None else model.algorithm()

    if model is None or algorithm is None:
        return

    from .settings_file import misspelt_names

    file = Path(_bind(wrapped, args, kwargs).arguments['file_path'])
    keys = algorithm.available_reconstructors()
    model.misspelt = misspelt_names(file, instance, keys, [library.name for _, library in model.loaded])

    for sentence in model.misspelt:
        logger.warning('%s: %s', file, sentence)

    if model.is_batch:
        model.refuse_misspelt()


def _execute_batch(
    wrapped: Callable[..., ExitCode], instance: ModelCore, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ExitCode:
    """Run the host's batch mode.

    A run that a signal has stopped is its exit code 130; misspelt names and an output folder that cannot be made are
    its code for wrong usage, before any data are read.
    """
    from ptychodus.api.exit_codes import ExitCode

    model = _MODELS.get(instance.settings_registry)
    arguments = _bind(wrapped, args, kwargs).arguments
    folder, folder_of_input = Path(arguments['output_directory']), Path(arguments['input_directory'])

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        logger.error('The output folder %s cannot be made (%s): choose another with -o.', folder, error.strerror)
        return ExitCode.USAGE

    if model is not None:
        model.is_batch = True

    try:
        if model is not None and not (folder_of_input / 'settings.ini').is_file():
            model.refuse_misspelt()
        return wrapped(*args, **kwargs)
    except RunInterruptedError as error:
        logger.warning('%s', error)
        return ExitCode.CANCELLED
    except MisspeltSettingsError:
        logger.error('Nothing was run: correct the names in the settings file that are listed above.')
        return ExitCode.USAGE
    finally:
        if model is not None:
            model.is_batch = False


# Panels


def _init_processing_controller(
    wrapped: Callable[..., None], instance: ProcessingController, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    bound = _bind(wrapped, args, kwargs)
    model = _MODELS.get(bound.arguments['processing_api'])
    loaded = [] if model is None else model.loaded
    bound.arguments['view_controller_factories'] = [
        *bound.arguments['view_controller_factories'],
        *_create_view_controller_factories(loaded, bound.arguments['file_dialog_factory']),
    ]
    wrapped(*bound.args, **bound.kwargs)

    if model is not None and loaded:
        _update_infer_button(instance, bound.arguments, model)
        _connect_window(instance, bound.arguments, model)


def _create_view_controller_factories(
    loaded: list[Loaded],
    file_dialog_factory: Any,  # noqa: ANN401 - passed on
) -> list[ReconstructorViewControllerFactory]:
    from .panel.factory import GuardedViewControllerFactory

    factories: list[ReconstructorViewControllerFactory] = []

    for plugin, library in loaded:
        try:
            factory = plugin.create_view_controller_factory(library, file_dialog_factory)

            if factory.name.casefold() != library.name.casefold():
                raise ValueError(f'the panel factory is called "{factory.name}"')
        except Exception as error:
            logger.warning('No panel for the library "%s": %s: %s', library.name, type(error).__name__, error)
        else:
            factories.append(GuardedViewControllerFactory(factory))

    return factories


def _update_infer_button(controller: ProcessingController, arguments: Mapping[str, Any], model: _HostModel) -> None:
    """Enable the Infer button of a reconstructor of the group only where a model is loaded.

    The host enables it whenever a product is selected, and updates it when a run starts, not when it has ended.
    """
    from ptychodus.api.observer import Observable, Observer
    from ptychodus.api.reconstruct import TrainableReconstructor

    monitor = arguments['processing_api'].task_monitor
    product_box = controller._product_view_controller.get_widget()
    button = controller._actions_view.reconstruct_button

    def disable_without_model() -> None:
        selected = model.selected()
        has_model = not isinstance(selected, TrainableReconstructor) or selected.is_model_loaded()
        button.setToolTip('' if has_model else 'Train first, or load a model from the menu beside.')

        if not has_model:
            button.setEnabled(False)

    class InferButtonObserver(Observer):
        def __init__(self) -> None:
            self._completed_runs = monitor.get_completed_runs()

        def _update(self, observable: Observable) -> None:
            completed_runs = monitor.get_completed_runs()

            if completed_runs != self._completed_runs and model.selected() is not None:
                controller._sync_model_to_view()

            self._completed_runs = completed_runs
            disable_without_model()

    observer = InferButtonObserver()
    monitor.add_observer(observer)
    arguments['algorithm_parameter'].add_observer(observer)
    product_box.currentIndexChanged.connect(lambda _index: disable_without_model())
    products: Any = product_box.model()

    for signal in (products.dataChanged, products.rowsInserted, products.rowsRemoved):
        signal.connect(lambda *_: disable_without_model())


def _connect_window(controller: ProcessingController, arguments: Mapping[str, Any], model: _HostModel) -> None:
    """Pass the window to every factory of panels that can use it; one that fails costs a warning."""
    api = arguments['processing_api']
    window = HostWindow(
        status_view=arguments['status_view'],
        task_monitor=api.task_monitor,
        algorithm=arguments['algorithm_parameter'],
        products=arguments['product_repository'],
        product_box=controller._product_view_controller.get_widget(),
        prepare_input=lambda index: api.get_reconstruct_input(product_index=index),
        load_folder=functools.partial(_load_folder, model),
    )

    for factory in arguments['view_controller_factories']:
        if isinstance(factory, WindowAware):
            try:
                factory.connect_window(window)
            except Exception as error:
                logger.warning(
                    'The window cannot show the runs of "%s": %s: %s', factory.name, type(error).__name__, error
                )


def _load_folder(model: _HostModel, folder: Path) -> int:
    """Load patterns and product of a workflow folder into the host, and return the index of the product."""
    from ..data.io.workflow_folder import DIFFRACTION_FILE, PRODUCT_FILE, read_product

    workflow = None if model.workflow is None else model.workflow()

    if workflow is None:
        raise RuntimeError('Ptychodus ends.')

    diffraction = workflow.load_assembled_diffraction_data(folder / DIFFRACTION_FILE)
    product = read_product(folder / PRODUCT_FILE)
    return workflow.register_product(product, diffraction=diffraction).get_product_index()
