"""What may be read at all: regular files of bounded size, text of bounded nesting."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ptychopinn_torch_plugin.errors import ConfigurationError, InputError, ModelFileError
from ptychopinn_torch_plugin.storage.checked_files import (
    MAX_TEXT_BYTES,
    check_declared_bytes,
    open_regular,
    parse_json,
    parse_yaml,
    printable,
    read_bytes,
    read_text,
)


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_link_to_fifo(path: Path) -> None:
    make_fifo(path.with_name('pipe'))
    path.symlink_to('pipe')


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))


KINDS: dict[str, tuple[Callable[[Path], None], str]] = {
    'missing': (lambda _: None, 'does not exist'),
    'folder': (lambda path: path.mkdir(), 'is a folder'),
    'FIFO': (make_fifo, 'is a FIFO'),
    'link to a FIFO': (make_link_to_fifo, 'is a FIFO'),
    'socket': (make_socket, 'is a socket'),
    'device': (lambda path: path.symlink_to('/dev/zero'), 'is a device'),
    'link to itself': (lambda path: path.symlink_to(path.name), 'link that leads nowhere'),
}


@pytest.mark.parametrize('kind', KINDS)
def test_only_regular_files_are_opened(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    make, sentence = KINDS[kind]
    make(Path('x'))
    for error in (InputError, ModelFileError):
        with pytest.raises(error, match=f'x.*{sentence}'):
            read_bytes(Path('x'), 10, error)


def test_a_path_with_a_null_byte_is_refused() -> None:
    with pytest.raises(InputError, match='is no path of a file'):
        read_bytes(Path('a\0b'), 10)


def test_links_are_followed_unless_the_caller_forbids_it(tmp_path: Path) -> None:
    (tmp_path / 'file').write_bytes(b'content')
    (tmp_path / 'link').symlink_to('file')
    assert read_bytes(tmp_path / 'link', 10) == b'content'
    with pytest.raises(InputError, match='is a symbolic link'):
        read_bytes(tmp_path / 'link', 10, follow_links=False)


def test_a_sparse_file_of_terabytes_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / 'sparse').open('wb') as file:
        file.truncate(7 * 10**12)
    with pytest.raises(InputError, match='has 7,000,000,000,000 bytes, more than the 64'):
        read_bytes(tmp_path / 'sparse', 64)


def test_a_file_that_reports_no_size_is_bounded_as_well() -> None:
    if not Path('/proc/kallsyms').is_file():
        pytest.skip('needs a file without a size, as in /proc')
    with pytest.raises(InputError, match='grew beyond the 100 bytes'):
        read_bytes(Path('/proc/kallsyms'), 100)


def test_a_file_replaced_by_a_fifo_does_not_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / 'file').write_bytes(b'content')
    os.mkfifo(tmp_path / 'fifo')
    opened = os.open

    def open_replaced(path: Path, flags: int) -> int:
        (tmp_path / 'fifo').replace(tmp_path / 'file')
        return opened(path, flags)

    monkeypatch.setattr(os, 'open', open_replaced)
    with pytest.raises(InputError, match='is a FIFO'), open_regular(tmp_path / 'file'):
        pass


@pytest.mark.parametrize(
    ('content', 'text'),
    [('nepochs: 5 # ä', 'nepochs: 5 # ä'.encode()), ('a: 1', b'\xef\xbb\xbfa: 1')],
    ids=['UTF-8', 'with a byte order mark'],
)
def test_text_is_utf_8(content: str, text: bytes, tmp_path: Path) -> None:
    (tmp_path / 'file').write_bytes(text)
    assert read_text(tmp_path / 'file') == content


@pytest.mark.parametrize('encoding', ['latin-1', 'utf-16', 'utf-32', 'cp1252'])
def test_other_encodings_are_refused(encoding: str, tmp_path: Path) -> None:
    (tmp_path / 'file').write_bytes('größe: 5'.encode(encoding))
    with pytest.raises(ConfigurationError, match='is not text in UTF-8 .*: save it in UTF-8'):
        read_text(tmp_path / 'file')


def aliases(levels: int) -> str:
    """YAML of a few hundred bytes that stands for ``9**levels`` values."""
    lines = ['a0: &a0 [x, x, x, x, x, x, x, x, x]']
    lines += [f'a{n}: &a{n} [{", ".join([f"*a{n - 1}"] * 9)}]' for n in range(1, levels)]
    return '\n'.join(lines)


YAML: dict[str, tuple[str, str]] = {
    'nested aliases': (aliases(9), r'uses the alias \*a0'),
    'an alias of itself': ('a: &a [*a]', r'uses the alias \*a'),
    'a merge key': ('a: &a {b: 1}\nc: {<<: *a}', r'uses the alias \*a'),
    'deep flow nesting': ('[' * 100_000, 'nested more than 32 levels'),
    'deep block nesting': ('\n'.join(' ' * n + 'a:' for n in range(600)), 'nested more than 32 levels'),
    'deep mappings': ('{a: ' * 50_000, 'nested more than 32 levels'),
    'many values': ('[' + '1,' * 100_000 + ']', '10,000 values'),
    'a long value': ('a: ' + '9' * 100_000, '10,000 characters'),
    'a long number': ('a: ' + '9' * 9_000, 'cannot be read as YAML'),
    'a key twice': ('nepochs: 1\nnepochs: 2', 'gives "nepochs" twice'),
    'a key twice, nested': ('training: {nepochs: 1, nepochs: 2}', 'gives "nepochs" twice'),
    'a nested key that is no text': ('training:\n  &N: 64', 'holds no names with values at "None"'),
    'a Python object': ('!!python/object/apply:os.system ["true"]', 'cannot be read as YAML'),
    'an impossible date': ('a: 2026-99-99', 'cannot be read as YAML'),
    'a key that is a list': ('? [1, 2]\n: 3', 'cannot be read as YAML'),
    'control characters': ('a: \x00', 'cannot be read as YAML'),
    'no YAML': ('a: [1', 'cannot be read as YAML'),
    'two documents': ('a: 1\n---\nb: 2', 'cannot be read as YAML'),
}


@pytest.mark.parametrize('case', YAML)
def test_hostile_yaml_is_refused_at_once(case: str) -> None:
    text, sentence = YAML[case]
    begin = time.process_time()
    with pytest.raises(ConfigurationError, match=f'^c.yaml .*{sentence}') as caught:
        parse_yaml(text, Path('c.yaml'))
    assert '\n' not in str(caught.value)
    assert time.process_time() - begin < 5


def test_plain_yaml_is_read() -> None:
    text = 'training:\n  nepochs: 5\n  output_dir: out\nmodel: {N: 64, object_big: true}\nlist: [1, 2.5, null]\n'
    assert parse_yaml(text, Path('c.yaml')) == {
        'training': {'nepochs': 5, 'output_dir': 'out'},
        'model': {'N': 64, 'object_big': True},
        'list': [1, 2.5, None],
    }
    assert parse_yaml('', Path('c.yaml')) is None


@pytest.mark.parametrize(
    ('text', 'sentence'),
    [
        ('[' * 100_000, 'holds more than 10,000 values'),
        ('[' * 40 + ']' * 40, 'nested more than 32 levels'),
        ('{"a":' * 40 + '1' + '}' * 40, 'nested more than 32 levels'),
        ('[' + '1,' * 20_000 + '1]', 'holds more than 10,000 values'),
        ('{"a": 1, "a": 2}', 'gives "a" twice'),
        ('{"a": ', 'cannot be read as JSON'),
        ('9' * 5_000, 'cannot be read as JSON'),
        ('', 'cannot be read as JSON'),
    ],
)
def test_hostile_json_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        parse_json(text, Path('c.json'))


def test_brackets_in_json_strings_are_no_nesting() -> None:
    text = '{"a": "' + r'\"[{' * 50 + '", "b": [[1], {"c": 2}]}'
    assert parse_json(text, Path('c.json'))['b'] == [[1], {'c': 2}]


def test_the_limit_of_text_files_is_kept(tmp_path: Path) -> None:
    (tmp_path / 'file').write_bytes(b' ' * (MAX_TEXT_BYTES + 1))
    with pytest.raises(ConfigurationError, match='more than the 262,144 that are read'):
        read_text(tmp_path / 'file')


# The last value that is taken and the first that is refused


def test_the_limits_of_json() -> None:
    path = Path('c.json')
    assert parse_json('[' + '1,' * 9_999 + '1]', path) == [1] * 10_000
    with pytest.raises(ConfigurationError, match='more than 10,000 values'):
        parse_json('[' + '1,' * 10_000 + '1]', path)
    with pytest.raises(ConfigurationError, match='more than 10,000 values'):
        parse_json('[' + '{"a":[]},' * 3_334 + '1]', path)
    assert len(parse_json('[' + '1,' * 10_000 + '1]', path, max_values=None)) == 10_001
    for brackets in ('[]', '{}'):
        deepest = '{"a":' * 31 + brackets + '}' * 31
        assert parse_json(deepest, path)
        with pytest.raises(ConfigurationError, match='more than 32 levels'):
            parse_json('[' + deepest + ']', path)
    side_by_side = '[' + '[[]],' * 40 + '{"a": {"b": []}}]'
    assert len(parse_json(side_by_side, path, max_depth=4)) == 41
    with pytest.raises(ConfigurationError, match='more than 3 levels'):
        parse_json(side_by_side, path, max_depth=3)


def test_the_limits_of_yaml() -> None:
    path = Path('c.yaml')
    assert parse_yaml('[' * 32 + ']' * 32, path)
    with pytest.raises(ConfigurationError, match='more than 32 levels'):
        parse_yaml('[' * 33 + ']' * 33, path)
    assert parse_yaml(f'a: {"x" * 10_000}', path) == {'a': 'x' * 10_000}
    with pytest.raises(ConfigurationError, match='more than 10,000 characters'):
        parse_yaml(f'a: {"x" * 10_001}', path)
    # Stream, document and list begin with three events, and the document and the stream end with three.
    assert parse_yaml('[' + '1,' * 19_995 + ']', path) == [1] * 19_995
    with pytest.raises(ConfigurationError, match='10,000 values'):
        parse_yaml('[' + '1,' * 19_996 + ']', path)
    assert parse_yaml('a: [[1], [2], {b: [3]}]', path) == {'a': [[1], [2], {'b': [3]}]}


def test_the_limits_of_sizes(tmp_path: Path) -> None:
    (tmp_path / 'file').write_bytes(b'x' * 100)
    assert read_bytes(tmp_path / 'file', 100) == b'x' * 100
    with pytest.raises(InputError, match='has 100 bytes, more than the 99 that are read'):
        read_bytes(tmp_path / 'file', 99)
    with open_regular(tmp_path / 'file') as file:
        assert file.read() == b'x' * 100
    (tmp_path / 'text').write_bytes(b' ' * MAX_TEXT_BYTES)
    assert len(read_text(tmp_path / 'text')) == 256 * 1024
    (tmp_path / 'text').write_bytes(b'abc\xff')
    with pytest.raises(ConfigurationError, match=r'byte 3 is 0xff'):
        read_text(tmp_path / 'text')


def test_the_limits_of_declared_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path('x.h5')
    check_declared_bytes(path, 2**26 + 250 * 1000, 1000)
    with pytest.raises(InputError, match=r'unpacks from 1,000 to 67,358,865 bytes, more than 250 times its size'):
        check_declared_bytes(path, 2**26 + 250 * 1000 + 1, 1000)
    monkeypatch.setattr('ptychopinn_torch_plugin.storage.checked_files.physical_memory', lambda: 3 * 2**29)
    check_declared_bytes(path, 3 * 2**29, 2**28)
    with pytest.raises(InputError, match=r'arrays of 1.5 GiB, more than the 1.5 GiB of memory'):
        check_declared_bytes(path, 3 * 2**29 + 1, 2**28)


def test_what_a_message_shows_is_short_and_printable() -> None:
    assert printable('a' * 60) == 'a' * 60
    assert printable('a' * 61) == 'a' * 60 + '...'
    assert printable('a' * 8, 7) == 'a' * 7 + '...'
    assert printable('ä\n') == r'\xe4\n'


def test_messages_about_files_name_the_reason(tmp_path: Path) -> None:
    for name, sentence in (
        ('missing', r'missing does not exist\.'),
        ('file/inside', 'cannot be read .Not a directory'),
    ):
        (tmp_path / 'file').touch()
        with pytest.raises(InputError, match=sentence):
            read_bytes(tmp_path / name, 10)
