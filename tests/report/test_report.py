"""The report of a run: one page that needs nothing else, its data, the comparison, and ``status.json``."""

from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptychopinn_torch_plugin.config import Config, parse_config
from ptychopinn_torch_plugin.engines.pipeline import refine
from ptychopinn_torch_plugin.errors import InputError
from ptychopinn_torch_plugin.metrics.output import metrics_files
from ptychopinn_torch_plugin.metrics.run import duration
from ptychopinn_torch_plugin.observer import SilentObserver
from ptychopinn_torch_plugin.report import (
    Run,
    StatusFile,
    TrainingRun,
    collected_warnings,
    metrics_folder,
    output,
    read_report,
    report_path,
    write_comparison,
    write_report,
    write_training_report,
)
from ptychopinn_torch_plugin.report.facts import facts_of, metres
from ptychopinn_torch_plugin.report.images import draw_map
from ptychopinn_torch_plugin.report.notebook import plot
from ptychopinn_torch_plugin.report.training import training_facts
from ptychopinn_torch_plugin.storage.model_facts import read_facts
from ptychopinn_torch_plugin.storage.model_file import LossEntry, load_model, save_model
from ptychopinn_torch_plugin.training.run import train
from ptychopinn_torch_plugin.types import Credibility, Reconstruction
from tests.helpers.scans import make_scan
from tests.helpers.schemas import validate

HOSTILE = 'scan </script><img src="http://example.org/x.png" onerror="alert(1)">'
CONFIG = parse_config(
    {'refinement': {'refine_epochs': 4, 'probe_modes': 2, 'positions_start': 1}, 'inference': {'threads': 1}}
)
CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
Made = tuple[Reconstruction, Run]


@pytest.fixture(scope='module')
def made() -> Made:
    scan = replace(make_scan(rows=4, margin=3)[0], name=HOSTILE)
    started = datetime(2026, 11, 25, 3, 0, tzinfo=UTC)
    result = refine(scan, CONFIG)
    return result, Run('refine', scan, CONFIG, started, 83.0, (2e-8, 2e-8), ('one <b>warning</b>',), None, Path('p.h5'))


@pytest.fixture(scope='module')
def page(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp('first') / 'report.html'
    assert write_report(path, *made)
    return path


class Links(HTMLParser):
    """Collects what a page refers to, and the elements in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            assert not name.startswith('on'), f'<{tag} {name}={value}>'
            if name in ('src', 'href', 'data', 'action'):
                self.links.append(str(value))
            if name == 'id':
                self.ids.append(str(value))


def assert_self_contained(path: Path) -> Links:
    text = path.read_text()
    found = Links(text)
    assert found.links
    assert all(link.startswith('data:image/png;base64,') for link in found.links)
    assert not re.search(r'url\(|@import', text)
    return found


def test_the_page_holds_everything_and_refers_to_nothing(page: Path) -> None:
    found = assert_self_contained(page)
    names = ['amplitude', 'phase', 'probe-found-1', 'probe-found-2', 'probe-given-1', 'coverage', 'uncertainty']
    names += ['object-residual', 'detector-residual', 'positions', 'losses', 'report-data']
    assert set(names) <= set(found.ids)
    text = page.read_text()
    for words in (
        'Misfit',
        'The positions',
        'one &lt;b&gt;warning&lt;/b&gt;',
        '25 November 2026',
        '1 min 23 s',
        'torch',
    ):
        assert words in text
    assert re.search(r'refinement\.refine_epochs</code></td><td>4</td><td>60</td>', text)
    assert text.count('Logarithmic colours.') == 2


def test_a_hostile_name_is_text(page: Path) -> None:
    found = Links(page.read_text())
    assert found.tags.count('script') == 2, 'the data, and the zoom of this package'
    assert read_report(page).facts['scan'] == HOSTILE


def test_the_data_follow_their_schema(made: Made, page: Path) -> None:
    facts = read_report(page).facts
    validate('report', facts)
    assert facts == json.loads(json.dumps(facts_of(*made)))
    verdict = Credibility(float('nan'), 0.1, 0.2, 0.3, 'yellow', None, float('nan'), 'Doubtful.')
    assert made[0].metrics is not None
    verified = replace(made[0].metrics, credibility=verdict)
    with_verdict = facts_of(replace(made[0], metrics=verified), made[1])
    validate('report', with_verdict)
    assert with_verdict['credibility']['colour'] == 'yellow'
    without_metrics = facts_of(replace(made[0], metrics=None), made[1])
    validate('report', without_metrics)
    assert without_metrics['advice'][0] == 'The quality was not computed; the log says why.'


@pytest.fixture(scope='module')
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainingRun:
    folder = tmp_path_factory.mktemp('trained')
    config = parse_config(
        {
            'training': {'epochs': 2, 'threads': 1},
            'model': {'steps': 3, 'width': 4},
            'data': {'group_size': 12, 'neighbor_count': 14},
        }
    )
    scan = replace(make_scan(rows=5)[0], name=HOSTILE).with_pixel((2e-8, 3e-8))
    model = train([scan], config, folder)
    return TrainingRun([scan], config, datetime(2026, 11, 25, 3, 0, tzinfo=UTC), 83.0, model, ('one <b>warning</b>',))


@pytest.fixture(scope='module')
def training_page(trained: TrainingRun) -> Path:
    path = trained.model_file.with_name('training.html')
    assert write_training_report(path, trained)
    return path


def facts_in(page: Path) -> dict[str, Any]:
    text = re.search(r'<script type="application/json" id="report-data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert text is not None
    facts: dict[str, Any] = json.loads(text[1])
    return facts


def test_the_page_of_a_training_holds_everything(trained: TrainingRun, training_page: Path) -> None:
    found = assert_self_contained(training_page)
    names = {'losses', 'amplitude', 'phase', 'probe-given-1', 'probe-found-1', 'report-data'}
    assert names <= set(found.ids)
    assert found.tags.count('script') == 2
    text = training_page.read_text()
    for words in ('the model file holds this epoch', '25 November 2026', '1 min 23 s', 'one &lt;b&gt;warning', '30 nm'):
        assert words in text
    assert re.search(r'training\.epochs</code></td><td>2</td><td>20</td>', text)
    facts = facts_in(training_page)
    validate('report', facts)
    assert facts['scans'][0]['object_pixel_m'] == [2e-8, 3e-8]
    assert facts['epochs'] == 2
    assert any('trained on one scan' in sentence for sentence in facts['advice'])
    with pytest.raises(InputError, match='is the report of a training'):
        read_report(training_page)


def test_a_training_that_was_stopped_has_a_report_without_an_object(trained: TrainingRun, tmp_path: Path) -> None:
    model = load_model(trained.model_file)
    header = model.header.model_copy(update={'history': ()})
    save_model(tmp_path / 'model.safetensors', replace(model, header=header))
    stopped = replace(trained, is_stopped=True, model_file=tmp_path / 'model.safetensors')
    assert write_training_report(tmp_path / 'training.html', stopped)
    assert 'amplitude' not in Links((tmp_path / 'training.html').read_text()).ids
    facts = facts_in(tmp_path / 'training.html')
    validate('report', facts)
    assert facts['advice'] == ['No epoch was finished: the model is not trained.']


@pytest.mark.parametrize(
    ('losses', 'words'),
    [
        ([(9.0, 5.0), (8.0, 4.5)], 'The patterns are not explained'),
        ([(2.0, 1.0), (1.5, 1.2)], 'smallest in epoch 1, and is 20% larger in the last one'),
        ([(2.0 - 0.1 * number, None) for number in range(10)], 'still falling after 10 epochs'),
        ([(2.0, None)], 'No position was held out'),
    ],
)
def test_advice_on_a_training(trained: TrainingRun, losses: list[tuple[float, float | None]], words: str) -> None:
    model = read_facts(trained.model_file)
    history = tuple(
        LossEntry(epoch=number, training=one, validation=held) for number, (one, held) in enumerate(losses, 1)
    )
    changed = replace(model, header=model.header.model_copy(update={'history': history}))
    assert words in ' '.join(training_facts(trained, changed)['advice'])


@pytest.mark.skipif(CHROMIUM is None, reason='no Chromium is installed')
@pytest.mark.parametrize('kind', ['page', 'training_page'])
def test_a_browser_shows_the_page(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """The browser runs the script of the page without an error and draws all of it."""
    page = request.getfixturevalue(kind)
    picture = tmp_path / 'page.png'
    command = [str(CHROMIUM), '--headless', '--no-sandbox', '--disable-gpu', '--enable-logging=stderr', '--v=0']
    command += [f'--user-data-dir={tmp_path / "profile"}', '--window-size=1280,3000', f'--screenshot={picture}']
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=100, check=True)
    assert 'CONSOLE' not in done.stderr
    from PIL import Image

    assert len(set(np.asarray(Image.open(picture).convert('L')).ravel().tolist())) > 100


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (lambda result, scan: np.zeros(2), None),
        (lambda result, scan: np.array([[3.0, 4.0], [0.0, 0.0]])[np.arange(scan.size) % 2], 'moved by 2.5 px (50 nm)'),
    ],
)
def test_advice_on_positions(made: Made, change: Callable[..., np.ndarray], words: str | None) -> None:
    result, run = made
    moved = replace(result, positions=run.scan.positions + change(result, run.scan))
    advice = ' '.join(facts_of(moved, run)['advice'])
    assert ('The positions moved' in advice) == (words is not None)
    assert words is None or words in advice


def test_advice_names_a_bad_fit_and_an_unfinished_run(made: Made) -> None:
    result, run = made
    assert result.metrics is not None
    bad = replace(result, metrics=replace(result.metrics, reduced_chi_square=30.0, overlap=1.2, uncertainty=0.5))
    advice = facts_of(bad, run)['advice']
    assert 'inspect' in advice[0]
    assert any('1.2 positions illuminate a pixel' in sentence for sentence in advice)
    assert any('is noisy' in sentence for sentence in advice)


def test_a_report_that_fails_is_a_warning(
    made: Made, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / 'file').touch()
    with collected_warnings() as lines:
        assert not write_report(tmp_path / 'file' / 'report.html', *made)
        for error in (ImportError('no jinja', name='jinja2'), MemoryError(), ZeroDivisionError('a defect')):
            with monkeypatch.context() as patch:
                patch.setattr(output, 'render_report', lambda *_, error=error: (_ for _ in ()).throw(error))
                assert not write_report(tmp_path / 'report.html', *made)
    assert [line.startswith('There is no report') for line in lines] == [True] * 4
    assert not (tmp_path / 'report.html').exists()


def test_the_folder_of_the_user_keeps_the_newest_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('XDG_DATA_HOME', str(tmp_path))
    monkeypatch.setattr(output, 'MAX_REPORTS', 3)
    started = datetime(2026, 11, 25, 3, 0, tzinfo=UTC)
    for second in range(5):
        path = report_path('', 'a/b: ü', started.replace(second=second))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        for file in metrics_files(metrics_folder(path)):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
    folders = sorted(folder.name for folder in path.parent.iterdir() if folder.is_dir())
    assert folders == [f'2026-11-25_03000{second}_a-b-ü' for second in (2, 3, 4)]
    kept = sorted(file.name for file in path.parent.glob('*.html'))
    assert kept == [f'2026-11-25_03000{second}_a-b-ü.html' for second in (2, 3, 4)]
    assert report_path(str(tmp_path / 'mine'), '..', started) == tmp_path / 'mine' / '2026-11-25_030000_scan.html'


def test_the_comparison_shows_every_result(made: Made, page: Path, tmp_path: Path) -> None:
    other = tmp_path / 'second' / 'report.html'
    assert write_report(other, replace(made[0], metrics=None), replace(made[1], config=Config()))
    write_comparison(tmp_path / 'comparison.html', [read_report(page), read_report(other.parent)])
    text = (tmp_path / 'comparison.html').read_text()
    assert_self_contained(tmp_path / 'comparison.html')
    assert re.search(
        r'refinement\.refine_epochs</code></th><td class="value">4</td><td class="value">default</td>', text
    )
    assert page.parent.name in text
    assert '<th>second</th>' in text


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        (None, 'holds no report.html'),
        ('<html></html>', 'its data are missing'),
        ('<script id="report-data">{"format_version": 2}</script>', 'another version'),
        ('<script id="report-data">{"format_version": 1}</script>', 'scan is missing'),
        ('<script id="report-data">[[[</script>', 'cannot be read as JSON'),
    ],
)
def test_other_files_are_refused(content: str | None, words: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / 'report.html').write_text(content)
    with pytest.raises(InputError, match=words):
        read_report(tmp_path)


def test_only_embedded_pictures_are_taken_from_a_report(page: Path, tmp_path: Path) -> None:
    text = page.read_text()
    changed = re.sub(r'(id="phase" src=")[^"]*', r'\1http://example.org/p.png', text)
    (tmp_path / 'report.html').write_text(changed)
    images = read_report(tmp_path).images
    assert 'amplitude' in images
    assert 'phase' not in images


def test_what_is_not_known_is_hatched_and_large_maps_are_reduced() -> None:
    import base64
    import io

    from PIL import Image

    values = np.full((4, 3000), 0.5)
    values[:, :1500] = np.nan
    drawn = draw_map('x', 'X', values, 'viridis', (0.0, 1.0), pixel=(1e-8, 'm'))
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(drawn.url.split(',')[1]))).convert('RGB'))
    assert drawn.shape == picture.shape[:2] == (2, 1000)
    assert 'one of 3 rows and columns' in drawn.note
    assert drawn.bar_text == '10 µm'
    assert drawn.bar_percent == pytest.approx(100 * 10 / 30)
    unknown = picture[:, :500].reshape(-1, 3)
    assert set(map(tuple, unknown.tolist())) == {(232, 232, 232), (214, 214, 214)}
    assert len(np.unique(picture[:, 500:].reshape(-1, 3), axis=0)) == 1


@pytest.mark.parametrize(
    ('seconds', 'text'), [(0.25, '0.2 s'), (83, '1 min 23 s'), (3600, '1 h'), (7265, '2 h 1 min 5 s')]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
    assert metres(2.82e-8) == '28.2 nm'


def status_of(file: Path) -> dict[str, object]:
    document: dict[str, object] = json.loads(file.read_text())
    validate('status', document)
    return document


def test_the_status_is_complete_and_written_once_a_second(tmp_path: Path) -> None:
    now, file = [0.0], tmp_path / 'status.json'
    with StatusFile(file, 'refine', lambda: now[0]) as status:
        assert status_of(file)['state'] == 'running'
        status.plan('refine', parse_config({'refinement': {'refine_epochs': 7}}))
        observer = status.observer(SilentObserver())
        observer.on_progress(0, 4)
        observer.on_stage('refining')
        now[0] = 10.0
        observer.on_progress(1, 4)
        first = status_of(file)
        assert (first['fraction'], first['seconds_left'], first['stage']) == (0.25, 30.0, 'refining')
        assert (first['epoch'], first['epochs']) == (1, 7)
        now[0] = 10.5
        logging.getLogger('ptychopinn_torch_plugin.x').warning('a line')
        observer.on_losses(1, 2.5, float('nan'))
        assert status_of(file) == first
        now[0] = 11.1
        observer.on_progress(2, 4)
        assert status_of(file)['losses'] == [[1, 2.5, None]]
        assert status_of(file)['epoch'] == 2
        assert status_of(file)['message'] == 'a line'
        status.finish([tmp_path / 'p.h5'], is_stopped=False)
    last = status_of(file)
    assert (last['seconds_left'], last['epoch']) == (0.0, None)
    assert (last['state'], last['fraction'], last['files']) == ('done', 1.0, [str(tmp_path / 'p.h5')])


@pytest.mark.parametrize(('error', 'state'), [(ValueError('too bad'), 'failed'), (KeyboardInterrupt(), 'stopped')])
def test_the_status_of_a_run_that_ends_early(tmp_path: Path, error: BaseException, state: str) -> None:
    with pytest.raises(type(error)), StatusFile(tmp_path / 'status.json', 'train'):
        raise error
    document = status_of(tmp_path / 'status.json')
    assert document['state'] == state
    assert (document['error'] == {'type': 'ValueError', 'message': 'too bad'}) == (state == 'failed')


def test_a_status_that_cannot_be_written_is_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / 'file').touch()
    with StatusFile(tmp_path / 'file' / 'status.json', 'refine') as status:
        status.begin('refining')
    assert caplog.text.count('is not written any more') == 1


def test_a_notebook_shows_a_reconstruction(made: Made) -> None:
    html = made[0]._repr_html_()
    found = Links(html)
    assert len(found.links) == 2
    assert 'Misfit' in html
    figure = plot(made[0])
    titles = [axis.get_title() for axis in figure.axes]
    for title in ('amplitude', 'phase [rad]', 'probe: amplitude, 2 modes', 'positions: as given', 'losses'):
        assert title in titles
    moved = replace(made[0], positions=made[1].scan.positions + np.eye(2)[np.arange(made[1].scan.size) % 2])
    with_movement = plot(moved, made[1].scan.with_pixel((2e-8, 2e-8)))
    assert any(axis.get_title().startswith('positions: movement') for axis in with_movement.axes)
    assert any(axis.get_xlabel() == 'x [µm]' for axis in with_movement.axes)
