"""The benchmark of the API tells what it measured; how fast anything is, no test asks."""

from argparse import Namespace
from contextlib import contextmanager
from multiprocessing import get_context

import pytest
from limits import parse

from batch_jobs.settings import Settings
from prediction_api.config import Config
from prediction_api.main import create_app
from tests.benchmarks import api, bare_api
from tests.support.api import listening


@contextmanager
def in_thread(settings, module):
    """A server in this process, where the benchmark starts one in a process of its own."""
    config = Config(settings=settings, rate=parse("1000000/second"))
    app = create_app(config) if module == "prediction_api" else bare_api.app(settings)
    with listening(app, config) as server:
        yield server.servers[0].sockets[0].getsockname()[1]


def test_it_measures_every_route_beside_its_floor(tmp_path, monkeypatch, capsys):
    """Each answer is a success, idle and while somebody publishes."""
    monkeypatch.setattr(api, "serving", in_thread)
    settings = Settings(f"sqlite:///{tmp_path}/w.db", str(tmp_path / "models"))
    asked = Namespace(rows=200, seconds=0.1, repeats=1, connections=2)
    with get_context("spawn").Pool(1) as pool:
        records = api.measure(pool, asked, "sqlite", settings)
    api.add_ratios(records)
    api.show(records)
    assert [(one["while"], one["what"]) for one in records] == [
        *(("idle", "constant"), ("idle", "look-up")),
        *(("one by one", "constant"), ("one by one", "1,000 keys")),
        *(("exporting", "constant"), ("exporting", "look-up")),
        *(("publishing", "constant"), ("publishing", "look-up")),
        *(("beside another", "constant"), ("beside another", "look-up")),
        *(("computing", "bare handler"), ("computing", "POST /predict")),
    ]
    for one in records:
        assert one["failed"] == 0
        assert one["requests_per_second"] > 0
        assert 0 < one["p50_ms"] <= one["p99_ms"]
        assert one["ratio"] > 0
    assert "POST /predict" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--databases", "oracle"], ["--rows", "many"]])
def test_what_cannot_be_measured_is_wrong_usage(words, capsys):
    """An unknown database or number of rows is refused before anything is started."""
    with pytest.raises(SystemExit) as ended:
        api.main(words)
    assert ended.value.code == 2
    assert words[1] in capsys.readouterr().err
