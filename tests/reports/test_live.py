"""The report that follows runs while they go on, and its server."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from synthetic_runs import write_run

from mnist_exp.cli import report as command
from mnist_exp.reports import collect, live
from mnist_exp.reports.live import LiveReport, LiveRuns, ReportServer, progress
from mnist_exp.runs import Run, Status

Compose = Callable[..., dict[str, Any]]


@pytest.fixture
def runs(tmp_path: Path, composed: Compose) -> Path:
    """Two complete runs of an arm, one that has stopped, and one that waits."""
    low, high = composed("name=low", "data=mnist5k"), composed("name=high", "data=mnist5k", "optimizer.lr=0.1")
    for seed in range(2):
        write_run(tmp_path / "runs" / f"low-{seed}", low, seed=seed, accuracy=0.95)
    write_run(tmp_path / "runs" / "high-0", high, status="interrupted", epochs=2)
    write_run(tmp_path / "runs" / "high-1", high, seed=1, status="waiting", epochs=0)
    return tmp_path / "runs"


def complete(path: Path, composed: Compose) -> None:
    shutil.rmtree(path)
    write_run(path, composed("name=high", "data=mnist5k", "optimizer.lr=0.1"), accuracy=0.97)


class TestReading:
    @pytest.fixture
    def read(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """The names of the runs that are read."""
        names: list[str] = []
        original = collect.read_result

        def read_result(path: Path) -> Run:
            names.append(path.name)
            return original(path)

        monkeypatch.setattr(live, "read_result", read_result)
        return names

    def test_what_has_not_changed_is_not_read_again(self, runs: Path, read: list[str], composed: Compose) -> None:
        found = LiveRuns([str(runs)], None)
        assert found.look()
        assert sorted(read) == ["high-0", "high-1", "low-0", "low-1"]
        read.clear()
        assert not found.look()
        assert read == []
        complete(runs / "high-0", composed)
        assert found.look()
        assert read == ["high-0"]
        report = found.report()
        assert [row.arm.label for row in report.rows] == ["high", "low"]
        assert report.comparison.found == 4

    def test_the_same_report_as_without_it(self, runs: Path, composed: Compose) -> None:
        found = LiveRuns([str(runs)], None)
        found.look()
        found.report()
        complete(runs / "high-0", composed)
        (runs / "high-1" / "run.json").write_text("damaged")
        found.look()
        followed, fresh = found.report(), collect.compare(collect.paths_of([str(runs)]))
        assert followed.comparison.problems == fresh.problems
        assert followed.comparison.notes == fresh.notes
        for own, other in zip(followed.comparison.arms, fresh.arms, strict=True):
            assert (own.label, list(own.runs), own.test_set) == (other.label, list(other.runs), other.test_set)
            assert (own.confusion == other.confusion).all()
        assert [digit.wrong for digit in followed.comparison.hard_digits] == [
            digit.wrong for digit in fresh.hard_digits
        ]

    def test_a_complete_run_that_is_deleted(self, runs: Path) -> None:
        found = LiveRuns([str(runs)], None)
        found.look()
        shutil.rmtree(runs / "low-0")
        assert found.look()
        assert found.report().comparison.found == 3
        assert len(found.report().rows[0].arm.runs) == 1

    def test_a_process_that_dies(self, runs: Path) -> None:
        record = json.loads((runs / "high-0" / "run.json").read_text())
        (runs / "high-0" / "run.json").write_text(json.dumps({**record, "status": "running"}))
        with FileLock(runs / "high-0" / ".lock"):
            found = LiveRuns([str(runs)], None)
            found.look()
            assert found.runs[runs / "high-0"].status == Status.RUNNING
            assert not found.look()
        assert found.look()
        assert found.runs[runs / "high-0"].status == Status.KILLED


def test_progress(tmp_path: Path, composed: Compose) -> None:
    tree = composed("name=a", "data=mnist5k", "trainer.epochs=10")
    done = write_run(tmp_path / "done", tree, epochs=10)
    going = write_run(tmp_path / "going", tree, seed=1, status="running", epochs=4, val_accuracy=0.9)
    waiting = write_run(tmp_path / "waiting", tree, seed=2, status="waiting", epochs=0)
    os.utime(going / "metrics.jsonl", (1000, 1000))
    with FileLock(going / ".lock"):
        runs = [collect.read_run(path) for path in (done, going, waiting)]
    text = progress(runs, {going: "<b>"}, now=1003.0)
    assert "<b>1 of 3 done</b>, 1 running, 1 waiting, about 21 s left" in text  # 9 s of a whole run, 12 s of this one
    assert "&lt;b&gt; · seed 1</a>: epoch 5 of 10, about 12 s left; validation" in text  # 6 epochs of 2.5 s, 3 s ago


class TestServer:
    @pytest.fixture
    def server(self, runs: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ReportServer]:
        monkeypatch.setattr(live, "PAUSE", 0.0)
        with ReportServer(LiveReport([str(runs)], None), port=0) as server:
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
            thread.start()
            yield server
            server.shutdown()
            thread.join()

    def ask(self, server: ReportServer, path: str, **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read()

    def test_news(self, server: ReportServer, runs: Path, composed: Compose) -> None:
        status, page = self.ask(server, "/")
        assert status == 200
        assert b'data-live="1"' in page
        status, answer = self.ask(server, "/live?version=1")
        assert (status, list(json.loads(answer))) == (200, ["jobs"])
        complete(runs / "high-0", composed)
        while "version" not in (news := json.loads(self.ask(server, "/live?version=1")[1])):
            time.sleep(0.05)  # it looks again after twice the time that the last look took
        assert news["version"] == 2
        assert "Best arm: high" in news["body"]
        assert "curves_error" in news["specs"]
        assert "3 of 4 done" in news["jobs"]

    def test_refuses_other_sites_and_paths(self, server: ReportServer) -> None:
        assert self.ask(server, "/live", Origin="https://example.org")[0] == 403
        assert self.ask(server, "/", Host="example.org")[0] == 403
        assert self.ask(server, "/../../etc/passwd")[0] == 404
        assert self.ask(server, "/live?version=-1;drop")[0] == 200

    def test_a_folder_that_is_deleted_leaves_the_last_report(self, server: ReportServer, runs: Path) -> None:
        shutil.rmtree(runs)
        assert b"Best arm: low" in self.ask(server, "/")[1]

    def test_pages_of_run_directories(self, server: ReportServer, runs: Path) -> None:
        (runs / "high-0" / "train.log").write_text("<b>epoch</b> 1\n")
        (runs / "high-0" / "secret.txt").symlink_to("/etc/passwd")
        body = json.loads(self.ask(server, "/live?version=0")[1])["body"]
        address = re.findall(rf'href="(run/\w+/)">{runs}/high-0<', body)[0]
        status, page = self.ask(server, f"/{address}")
        assert status == 200
        assert b"<h1>high \xc2\xb7 seed 0: interrupted</h1>" in page
        assert b'<a href="train.log">' in page
        assert b"secret" not in page
        assert self.ask(server, f"/{address}train.log") == (200, b"<b>epoch</b> 1\n")
        for wrong in ("secret.txt", "no.txt", "..%2Flow-0%2Frun.json", "predictions.npz"):
            assert self.ask(server, f"/{address}{wrong}")[0] == 404
        assert self.ask(server, "/run/0123/")[0] == 404
        for name in ("high-0", "low-1"):
            shutil.rmtree(runs / name)
        assert b"No such file" in self.ask(server, f"/{address}")[1]


def test_a_report_that_waits_for_the_first_run(
    tmp_path: Path, composed: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = LiveReport([str(tmp_path / "sweep")], "lr=0.1")

    def news() -> dict[str, Any]:
        monkeypatch.setattr(state, "_next", 0.0)  # otherwise it waits for a second between two looks
        return state.news(0)

    said = {"jobs": f"There is no run in {tmp_path}/sweep yet; this page waits for the first one."}
    assert news() == said
    assert "data-live" in state.page()
    write_run(tmp_path / "sweep" / "a", composed("name=a", "data=mnist5k"), status="waiting", epochs=0)
    assert "--baseline &#x27;lr=0.1&#x27; is not one arm" in news()["jobs"]
    write_run(tmp_path / "sweep" / "b", composed("name=b", "data=mnist5k", "optimizer.lr=0.1"))
    found = news()
    assert found["version"] == 1
    assert "Best arm: b" in found["body"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--serve", "--output", "x"], "--output has no effect with --serve; leave --output out"),
        (["--serve", "--wandb-dry-run"], "--wandb-dry-run has no effect with --serve; leave --wandb-dry-run out"),
        (["--wandb-sync", "--baseline", "a"], "--baseline has no effect with --wandb-sync; leave --baseline out"),
        (["--port", "0"], "--port has no effect without --serve; add --serve, or leave --port out"),
        (["--wandb-project", "p"], "--wandb-project has no effect without --wandb; add --wandb, or leave --wandb-project out"),
    ],
)  # fmt: skip
def test_options_without_an_effect_are_refused(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as leaving:
        command.main(["runs", *options])
    assert leaving.value.code == 2
    assert capsys.readouterr().err == f"mnist-report: {message}\n"
