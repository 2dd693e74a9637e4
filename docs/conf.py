"""Sphinx: ``sphinx-build -W -b html docs build/docs`` turns the pages here and the docstrings into a site.

The tutorials are run by the build; ``-D plot_gallery=0`` leaves that out.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from list_messages import messages_list

import ptychopinn_torch_plugin
from ptychopinn_torch_plugin.host.settings import group_name, iter_setting_fields

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = 'ptychopinn_torch_plugin'
author = 'The ptychopinn_torch_plugin developers'
copyright = author
version = release = ptychopinn_torch_plugin.__version__

extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon', 'sphinx_gallery.gen_gallery']
source_suffix = {'.md': 'markdown', '.rst': 'restructuredtext'}
exclude_patterns = ['images', 'tutorials']

html_theme = 'pydata_sphinx_theme'
html_title = 'PtychoPINN (PyTorch) for Ptychodus'
html_static_path = ['_static']
html_css_files = ['site.css']
html_show_copyright = False
html_show_sourcelink = False
html_theme_options = {
    'header_links_before_dropdown': 6,
    'navbar_align': 'left',
    'navigation_with_keys': False,
    'secondary_sidebar_items': ['page-toc'],
    'footer_start': [],
    'footer_end': [],
}

myst_enable_extensions = ['colon_fence']
myst_heading_anchors = 3

autodoc_default_options = {'members': True, 'member-order': 'bysource'}
autodoc_typehints = 'signature'
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

PACKAGE = ptychopinn_torch_plugin.__name__
_OF_QT = ('factory', 'fields', 'fold', 'inspection_box', 'model_box', 'page', 'run_view')
HIDDEN = {f'{PACKAGE}.host.panel.{name}' for name in _OF_QT}
"""Modules without a place in the reference: these need a screen's libraries to be imported."""


sphinx_gallery_conf = {
    'examples_dirs': 'tutorials',
    'gallery_dirs': 'auto_tutorials',
    'image_scrapers': ('tutorial_pictures.collect',),
    'within_subsection_order': 'FileNameSortKey',
    'abort_on_example_error': True,
    'download_all_examples': False,
    'show_memory': False,
    'show_signature': False,
}

_PLACEHOLDER = re.compile(r'^<!-- (messages|modules|pages|settings): ([\w.]+) -->$', re.MULTILINE)


def settings_table(section: str) -> str:
    """The settings of a section of the configuration tree as a Markdown table."""
    rows = [
        f'Settings group `{group_name(section)}`.',
        '',
        '| name, label in the panel | default, range | what it does, and when to change it |',
        '| --- ' * 3 + '|',
    ]
    for field in iter_setting_fields(section):
        choices = f' One of {", ".join(f"`{choice}`" for choice in field.choices)}.' if field.choices else ''
        bounds = [f'from {_written(field.minimum)}'] if field.minimum is not None else []
        bounds += [f'to {_written(field.maximum)}'] if field.maximum is not None else []
        values = '<br>'.join(
            part for part in (f'`{_written(field.default)}` {field.unit_text}', ' '.join(bounds)) if part
        )
        rows.append(f'| `{section}.{field.name}`<br>{field.label} | {values} | {field.tip}{choices} |')
    return '\n'.join(rows)


def _written(value: object) -> str:
    """Return a value of a setting as it is written after ``--set``."""
    if isinstance(value, bool):
        return 'yes' if value else 'no'
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def modules_below(name: str) -> list[str]:
    """Names of a module and of all that are in it, without importing any."""
    path = Path(ptychopinn_torch_plugin.__file__).parent.joinpath(*name.split('.')[1:])
    if path.with_suffix('.py').is_file():
        return [name]
    if not (path / '__init__.py').is_file():
        raise ValueError(f'There is no module {name}.')
    below = [f'{name}.{item.name}' for item in pkgutil.iter_modules([str(path)]) if item.name != '__main__']
    return [name, *(found for item in below for found in modules_below(item) if found not in HIDDEN)]


def reference(name: str) -> str:
    """The documentation of a module and of all that are in it, as MyST."""
    blocks = []
    modules = modules_below(name)
    for module in modules:
        # What a package takes over from its own modules stands there.
        is_package = any(other.startswith(f'{module}.') for other in modules)
        option = '\n   :no-members:' if is_package else ''
        blocks.append(f'## `{module}`\n\n```{{eval-rst}}\n.. automodule:: {module}{option}\n```\n')
        names = getattr(importlib.import_module(module), '__all__', ())
        if is_package and names:
            blocks.append(f'To be imported from here: {", ".join(f"`{item}`" for item in names)}.\n')
    return '\n'.join(blocks)


def other_pages() -> str:
    """Names of the pages in this folder that no list of pages names, one a line."""
    pages = sorted(Path(__file__).parent.glob('*.md'))
    listed = {line for page in pages for line in page.read_text(encoding='utf-8').splitlines()}
    return '\n'.join(page.stem for page in pages if page.stem != 'index' and page.stem not in listed)


def _fill_in(_app: Sphinx, _docname: str, source: list[str]) -> None:
    text = source[0]

    def text_of(match: re.Match[str]) -> str:
        if match[1] == 'pages':
            return other_pages()
        return {'messages': messages_list, 'modules': reference, 'settings': settings_table}[match[1]](match[2])

    source[0] = _PLACEHOLDER.sub(text_of, text).replace('{VERSION}', f'{{{release}}}')


def setup(app: Sphinx) -> None:
    """Have tables of settings, lists of messages, modules and pages, and the version written from what is there."""
    app.connect('source-read', _fill_in)
