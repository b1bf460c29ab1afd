"""Reports from synthetic run directories: their content, and that nothing is left out silently."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import altair
import numpy as np
import pytest
from PIL import Image
from synthetic_runs import write_run

from mnist_exp.cli import report
from mnist_exp.data.embedded import mnist5k
from mnist_exp.reports import html
from mnist_exp.reports.build import MANIFEST, Report, build, write
from mnist_exp.reports.collect import Varied, compare, labels, paths_of, split_settings
from mnist_exp.reports.figures import CURVES, for_file, for_page
from mnist_exp.reports.reproduction import run_command
from mnist_exp.reports.summary import print_summary
from mnist_exp.runs import read_run

Compose = Callable[..., dict[str, Any]]


@pytest.fixture
def drawn() -> None:
    """Asked for by tests that need pictures."""


@pytest.fixture(autouse=True)
def _placeholders(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Placeholders instead of pictures, because drawing takes longer than everything else."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr("mnist_exp.reports.build.draw", lambda figure: figure.name)
        monkeypatch.setattr("mnist_exp.reports.build.as_png", str.encode)


@pytest.fixture
def runs(tmp_path: Path, composed: Compose) -> Path:
    """Three arms with four seeds, one with one seed, and runs that are not completed or damaged."""
    folder = tmp_path / "runs"
    base, wide = composed("name=base", "data=mnist5k"), composed("name=wide", "data=mnist5k", "model.channels=[10,32]")
    mlp = composed("name=mlp", "data=mnist5k", "model=mlp")
    single = composed("name=single", "data=mnist5k", "optimizer.lr=0.1")
    for seed in range(4):
        write_run(folder / f"base-{seed}", base, seed=seed, accuracy=0.960 + 0.002 * seed)
        write_run(folder / f"wide-{seed}", wide, seed=seed, accuracy=0.985 + 0.001 * seed, parameters=115_510)
        write_run(folder / f"mlp-{seed}", mlp, seed=seed, accuracy=[0.961, 0.962, 0.963, 0.967][seed], macs=61_000)
    write_run(folder / "single-0", single, accuracy=0.97)
    write_run(folder / "diverged", single, seed=1, status="diverged", error="Diverged: test_loss is nan", epochs=2)
    write_run(folder / "gone", single, seed=2, status="running", epochs=1)
    return folder


def make(*patterns: Path | str, baseline: str | None = "base") -> Report:
    return build(compare(paths_of([str(pattern) for pattern in patterns]), baseline))


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The error message of the command, which exits with status 2."""
    with pytest.raises(SystemExit) as leaving:
        report.main([str(argument) for argument in arguments])
    assert leaving.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def test_the_library_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is made again if its file is damaged, or if others could have written it."""
    made: list[None] = []
    monkeypatch.setenv("MNIST_EXP_CACHE", str(tmp_path))
    monkeypatch.setattr("vl_convert.javascript_bundle", lambda: made.append(None) or "vega</script>")
    assert html._library() == html._library() == "vega<\\/script>"
    (stored,) = (tmp_path / "report").iterdir()
    assert len(made) == 1
    stored.write_bytes(stored.read_bytes()[:-9])
    assert html._library() == "vega<\\/script>"
    html._library()
    assert len(made) == 2
    stored.write_bytes(gzip.compress(b"theirs"))
    stored.parent.chmod(0o777)
    assert html._library() == "vega<\\/script>"
    assert gzip.decompress(stored.read_bytes()) == b"theirs"
    shutil.rmtree(tmp_path / "report")
    (tmp_path / "report").write_bytes(b"")
    assert html._library() == "vega<\\/script>"


class TestArms:
    def test_figures_of_an_arm(self, runs: Path) -> None:
        row = next(row for row in make(runs).rows if row.arm.label == "base")
        assert row.accuracy is not None
        assert row.accuracy.n == 4
        assert row.accuracy.mean == pytest.approx(0.963)
        assert row.accuracy.std == pytest.approx(np.std([0.960, 0.962, 0.964, 0.966], ddof=1))
        assert row.loss == pytest.approx(0.5 + 0.5 / 3)
        assert row.best == (pytest.approx(0.963), 3)
        assert (row.last_epoch, row.parameters, row.macs, row.train_seconds) == ((3, 3), 61_706, 416_520, 6.0)
        assert row.images_per_second == pytest.approx(2000)
        assert row.memory == 300 * 2**20

    def test_best_arm_first_and_the_unfinished_are_named(self, runs: Path) -> None:
        made = make(runs)
        assert [row.arm.label for row in made.rows] == ["wide", "single", "mlp", "base"]
        assert {(problem.status, problem.reason.partition(":")[0]) for problem in made.comparison.problems} == {
            ("diverged", "Diverged"),
            ("killed", "its process ended without recording why; to continue it"),
        }
        assert made.rows[1].not_completed == "1 diverged, 1 killed"

    def test_settings_that_differ_are_listed_once(self, runs: Path) -> None:
        varied = make(runs).comparison.varied
        assert [(column.key, column.aliases) for column in varied] == [
            ("optimizer.lr", ()),
            ("model._target_", ()),
            ("model.channels", ()),
            ("model.hidden", ()),
        ]

    def test_interpolated_settings_are_aliases(self, composed: Compose) -> None:
        settings = [{"regularization.dropout": p, "model.dropout": p, "seedless": 1} for p in (0.0, 0.5)]
        varied, common = split_settings(settings)
        assert [(column.key, column.aliases) for column in varied] == [("regularization.dropout", ("model.dropout",))]
        assert common == {"seedless": 1}

    def test_arms_of_one_name_have_distinct_labels(self) -> None:
        columns = [Varied("optimizer.lr", (), (0.1, 0.2, 0.1)), Varied("model.hidden", (), ([8], [8], [16]))]
        assert labels(["a", "a", "b"], columns) == ["a · lr 0.1", "a · lr 0.2", "b"]
        long = Varied("k", (), (0.12345678, 0.12346789, 0.5)), Varied("l", (), ("y" * 60, "y" * 60, "z"))
        assert labels(["a"] * 3, long) == ["k 0.12346", "k 0.12347", "k 0.5"]
        short = Varied("k", (), (0.12345678, 0.2, 1.23456e-05))
        assert labels(["a"] * 3, [short]) == ["k 0.1235", "k 0.2", "k 1.235e-05"]
        assert len(set(labels(["a"] * 3, [Varied("k", (), ("x" * 90,) * 2 + ("y",))]))) == 3

    def test_headline(self, runs: Path) -> None:
        made = make(runs)
        assert made.answer.title == "Best arm: wide, 98.65 % test accuracy"
        assert made.answer.facts == "Mean of 4 seeds; 95 % interval of the test accuracy over seeds 98.44 to 98.86 %."
        (against_baseline, against_second) = made.answer.contrasts
        assert against_baseline.sentence == (
            "Against the baseline base: +2.35 points (95 % interval +2.14 to +2.56): real. So large a difference is rare by "
            "chance (p <0.001 over seeds, p <0.001 by image)."
        )
        assert (against_second.opponent.label, against_second.finding, against_second.more) == (
            "single",
            "too few seeds",
            2,
        )


class TestPairs:
    def test_verdicts(self, runs: Path) -> None:
        verdicts = {pair.arm.label: pair.verdict for pair in make(runs).pairs}
        assert verdicts == {
            "wide": "better",
            "single": "unable to say: one seed (these networks differ: better on images)",
            "mlp": "no difference shown over seeds",
        }

    def test_by_image_only_where_the_test_set_is_the_same(self, runs: Path, composed: Compose) -> None:
        other = write_run(runs / "other", composed("name=other", "data=kmnist"), accuracy=0.9, images=500)
        made = make(runs)
        pair = next(pair for pair in made.pairs if pair.arm.label == "other")
        assert (pair.seeds, pair.images, pair.verdict) == (None, None, "other test set: not comparable")
        assert (
            "The arms were tested on 2 different test sets (1,000 images: base, mlp, single, wide; 500 images: other); their "
            "accuracies cannot be compared, and only arms with the baseline's test set are compared with it"
        ) in made.comparison.notes
        assert other.exists()

    def test_no_p_value_without_an_effect(self, runs: Path) -> None:
        for pair in make(runs).pairs:
            assert pair.seeds is not None
            assert pair.seeds_p is None or pair.seeds.interval is not None
            assert pair.images_p is None or pair.images is not None

    def test_correction_makes_no_p_value_smaller(self, runs: Path) -> None:
        for pair in make(runs).pairs:
            if pair.seeds and pair.seeds.p is not None:
                assert pair.seeds_p is not None
                assert pair.seeds_p >= pair.seeds.p

    def test_images_are_counted_of_the_test_set(self, tmp_path: Path, composed: Compose) -> None:
        for name, lr, accuracy in (("a", 1, 0.9), ("b", 2, 0.92)):
            tree = composed(f"name={name}", "data=mnist5k", f"optimizer.lr={lr}")
            write_run(tmp_path / "runs" / name, tree, accuracy=accuracy, images=500)
        made = make(tmp_path / "runs", baseline="a")
        (pair,) = made.pairs
        assert (pair.effect, pair.in_images) == ("+2.00", "+10 of 500")
        assert "+2.00 points" in made.headline
        written = [path.read_text() for path in write(made, tmp_path / "out")]
        assert not any("10,000" in text.partition("<script>")[0] for text in written)

    def test_no_images_are_counted_where_their_number_is_unknown(self, tmp_path: Path, composed: Compose) -> None:
        for lr, accuracy in ((1, 0.9), (2, 0.92)):
            tree = composed(f"name=lr{lr}", "data=mnist5k", f"optimizer.lr={lr}")
            write_run(tmp_path / "runs" / str(lr), tree, accuracy=accuracy, predictions=False)
        made = make(tmp_path / "runs", baseline="lr1")
        (pair,) = made.pairs
        assert (pair.effect, pair.in_images) == ("+2.00", "-")


class TestNotes:
    def test_same_settings_and_seed_count_once(self, runs: Path) -> None:
        shutil.copytree(runs / "base-0", runs / "zzz-again")
        made = make(runs)
        assert next(row.accuracy.n for row in made.rows if row.arm.label == "base" and row.accuracy) == 4
        assert f"{runs}/zzz-again repeats {runs}/base-0: same settings, same seed; only the latter is counted" in (
            made.comparison.notes
        )

    def test_half_a_line_of_metrics(self, runs: Path) -> None:
        with (runs / "base-1" / "metrics.jsonl").open("a") as file:
            file.write('{"epoch": 4, "train_')
        assert (
            f"{runs}/base-1/metrics.jsonl ends in an incomplete line, which is left out" in make(runs).comparison.notes
        )

    def test_a_run_with_a_damaged_line_is_a_problem(self, runs: Path) -> None:
        file = runs / "base-1" / "metrics.jsonl"
        file.write_text("rubbish\n" + file.read_text())
        (problem,) = [p for p in make(runs).comparison.problems if p.status == "unreadable"]
        assert problem.reason == f"{file}, line 1: not a metrics line"

    def test_mixed_versions_commits_and_machines(self, runs: Path, composed: Compose) -> None:
        write_run(
            runs / "new",
            composed("name=new", "data=mnist5k", "optimizer.lr=0.02"),
            versions={"torch": "9.0"},
            git=None,
            hardware={"cpu": "Another", "cores": 64},
        )
        notes = "\n".join(make(runs).comparison.notes)
        assert "Runs with different versions of torch: 2.15.0 (13), 9.0 (1)" in notes
        assert "Runs of different commits: 0123456789 (13), unknown (1)" in notes
        assert "measured in different places: A processor, cpu, 1 threads (13), Another, cpu, 1 threads (1)" in notes

    def test_predictions_missing_or_damaged(self, runs: Path) -> None:
        (runs / "base-0" / "predictions.npz").unlink()
        (runs / "base-1" / "predictions.npz").write_bytes(b"PK\3\4 cut off")
        made = make(runs)
        notes = "\n".join(made.comparison.notes)
        assert f"{runs}/base-0/predictions.npz is missing: the run counts for accuracy" in notes
        assert f"{runs}/base-1/predictions.npz cannot be read: " in notes
        assert next(pair.images.pairs for pair in made.pairs if pair.arm.label == "wide" and pair.images) == 2

    def test_runs_that_are_still_running(self, tmp_path: Path, composed: Compose) -> None:
        write_run(tmp_path / "a", composed("data=mnist5k"), status="interrupted", error="Interrupted: after step 3")
        made = make(tmp_path / "a", baseline=None)
        assert made.headline.startswith("No run has completed yet")
        assert {figure.section for figure in made.figures} == {"curves"}
        assert write(made, tmp_path / "out")


class TestMistakes:
    def test_empty_folder(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert refused(capsys, tmp_path) == f"mnist-report: no run in {tmp_path}; a run directory has a run.json\n"

    def test_no_such_place(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert refused(capsys, "nowhere") == (
            "mnist-report: nowhere does not exist; name run directories, folders of them, or a pattern\n"
        )

    def test_a_run_of_another_project(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "run.json").write_text('{"id": 7}')
        assert refused(capsys, tmp_path) == (
            f"mnist-report: {tmp_path} holds a run of another project: run.json has no status and config_hash\n"
        )

    def test_a_run_of_another_project_among_ours(self, runs: Path) -> None:
        (runs / "foreign").mkdir()
        (runs / "foreign" / "run.json").write_text('{"status": "completed", "config_hash": "x"}')
        (runs / "foreign" / "config.yaml").write_text("lr: 1")
        (problem,) = [p for p in make(runs).comparison.problems if p.status == "unreadable"]
        assert problem.reason == f"{runs}/foreign/config.yaml is not the configuration of a run of this project"

    def test_unknown_baseline(self, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert refused(capsys, runs, "--baseline", "bose") == (
            "mnist-report: --baseline 'bose' is not one arm; choose from 'base', 'mlp', 'single', 'wide'; "
            "did you mean base?\n"
        )

    def test_output_that_cannot_be_written(self, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
        Path("taken").write_text("a file")
        assert refused(capsys, runs, "--output", "taken") == (
            "mnist-report: --output taken cannot be written: it is a file, not a folder\n"
        )
        assert refused(capsys, runs, "--output", "taken/below") == (
            "mnist-report: --output taken/below cannot be written: Not a directory\n"
        )
        assert Path("taken").read_text() == "a file"

    @pytest.mark.parametrize("name", ["report.md", "figures/curves_loss.svg"])
    def test_a_folder_where_a_file_belongs(self, name: str, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (Path("out") / name).mkdir(parents=True)
        assert refused(capsys, runs, "--output", "out") == (
            f"mnist-report: --output out cannot be written: {name} is a folder\n"
        )
        assert [path for path in Path("out").rglob("*") if path.is_file()] == []

    @pytest.mark.parametrize("there", [True, False])
    def test_a_full_disk_leaves_an_earlier_report(self, there: bool, runs: Path) -> None:
        if there:
            write(make(runs / "base-0", baseline=None), Path("some/out"))
        before = {path: path.read_bytes() for path in Path().rglob("some/**/*") if path.is_file()}
        program = (  # the system calls a file that grows over a limit too large as it calls a disk full
            "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000,) * 2); "
            "from mnist_exp.cli.report import main; main(sys.argv[1:])"
        )
        ended = subprocess.run(
            [sys.executable, "-c", program, str(runs), "--output", "some/out"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (ended.returncode, ended.stdout) == (2, "")
        assert ended.stderr == "mnist-report: --output some/out cannot be written: File too large\n"
        assert {path: path.read_bytes() for path in Path().rglob("some/**/*") if path.is_file()} == before
        assert Path("some").exists() == there
        assert not list(Path().rglob(".writing-*"))

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
    def test_a_summary_that_cannot_be_printed(self, runs: Path) -> None:
        with Path("/dev/full").open("w") as full:
            command = [sys.executable, "-m", "mnist_exp.cli.report", str(runs / "base-0"), "--output", "out"]
            ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        assert ended.returncode == 2
        assert ended.stderr == (
            "mnist-report: written: out/report.html, out/report.md, out/results.csv; standard output cannot be written: "
            "No space left on device\n"
        )
        assert Path("out/report.html").is_file()


def test_patterns_sweeps_and_runs_are_found_once_and_in_order(runs: Path) -> None:
    for number in (10, 2):
        shutil.copytree(runs / "base-0", runs / "sweep" / str(number))
    found = paths_of([str(runs / "sweep"), str(runs / "sweep" / "*"), str(runs / "base-*")])
    assert [path.name for path in found] == ["2", "10", "base-0", "base-1", "base-2", "base-3"]


class TestFiles:
    @pytest.mark.usefixtures("drawn")
    def test_the_command_writes_them(self, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
        report.main([str(runs), "--baseline", "base"])
        output = Path("outputs/report")
        assert {path.name for path in output.iterdir()} == {"report.html", "report.md", "results.csv", "figures"}
        figures = list((output / "figures").iterdir())
        assert {path.suffix for path in figures} == {".svg", ".png", ".json"}
        names = {path.stem for path in figures}
        assert {"curves_error", "curves_loss"} <= names
        assert {"accuracy", "differences", "pareto_parameters", "confusion", "per_class", "reliability"} <= names
        for path in figures:
            if path.suffix == ".png":
                with Image.open(path) as image:
                    assert image.width > 800
                    assert len(image.convert("L").getcolors() or []) > 10, "not blank"
        printed = capsys.readouterr().out
        assert "2 of 15 runs are not counted:" in printed
        assert "written: outputs/report/report.html, outputs/report/report.md" in printed

    def test_csv_has_a_line_for_each_run(self, runs: Path, tmp_path: Path) -> None:
        write(make(runs), tmp_path / "out")
        lines = list(csv.DictReader(io.StringIO((tmp_path / "out" / "results.csv").read_text())))
        assert len(lines) == 15
        line = next(line for line in lines if line["directory"].endswith("wide-2"))
        assert (line["arm"], line["status"], line["seed"], line["model.channels"]) == (
            "wide",
            "completed",
            "2",
            "[10,32]",
        )
        assert float(line["test_accuracy"]) == pytest.approx(0.987)
        assert next(line["error"] for line in lines if line["status"] == "diverged") == "Diverged: test_loss is nan"

    def test_markdown_tables_are_whole_and_its_pictures_exist(self, runs: Path, tmp_path: Path) -> None:
        write(make(runs), tmp_path / "out")
        text = (tmp_path / "out" / "report.md").read_text()
        for table in re.findall(r"(?:^\|.*\n)+", text, re.M):
            assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
        pictures = re.findall(r"\]\((figures/[^)]+)\)", text)
        assert len(pictures) >= 10
        assert all((tmp_path / "out" / picture).is_file() for picture in pictures)
        assert "mnist-train seed=2 name=base" in text

    def test_html_contains_everything_and_downloads_nothing(self, runs: Path, tmp_path: Path) -> None:
        write(make(runs), tmp_path / "out")
        text = (tmp_path / "out" / "report.html").read_text()
        page = Links()
        page.feed(text)
        assert page.addresses
        assert all(address.startswith(("data:", "#", "../runs/")) for address in page.addresses)
        links = [address for address in page.addresses if address.startswith("../")]
        assert len(links) == 15 + 2, "those that are not counted are linked twice"
        assert all((tmp_path / "out" / link / "run.json").is_file() for link in links)
        assert "default-src 'none'" in text
        assert page.images == 30
        for said in (
            "single-0",
            "diverged",
            "Diverged: test_loss is nan",
            "unable to say: one seed",
            "0123456789abcdef",
        ):
            assert said in text

    def test_text_in_records_cannot_become_code(self, tmp_path: Path, composed: Compose) -> None:
        tree = composed("data=mnist5k")
        tree["data"] = {**tree["data"], "_target_": "</script><script>alert(1)</script>"}
        write_run(tmp_path / "r" / "a", tree, name="<img src=x onerror=alert(2)>")
        write_run(tmp_path / "r" / "b", composed("data=mnist5k"), name="</script><b>|x")
        write(make(tmp_path / "r", baseline=None), tmp_path / "out")
        text = (tmp_path / "out" / "report.html").read_text()
        assert "<script>alert" not in text
        assert "<img src=x" not in text
        assert "</script><b>" not in text
        assert text.count("</script>") == 3

    def test_figures_of_an_earlier_report_are_deleted(self, runs: Path, tmp_path: Path) -> None:
        write(make(runs), tmp_path / "out")
        assert (tmp_path / "out" / "figures" / "differences.svg").exists()
        write(make(runs / "base-0", baseline=None), tmp_path / "out")
        assert not (tmp_path / "out" / "figures" / "differences.svg").exists()

    def test_nothing_but_figures_of_an_earlier_report_is_deleted(self, runs: Path, tmp_path: Path) -> None:
        figures = tmp_path / "out" / "figures"
        figures.mkdir(parents=True)
        (figures / "mine.svg").write_text("<svg/>")
        write(make(runs), tmp_path / "out")
        (figures / "differences.svg").write_text("changed by hand")
        (tmp_path / "elsewhere.png").write_bytes((figures / "differences.png").read_bytes())
        (figures / "differences.png").unlink()
        (figures / "differences.png").symlink_to(tmp_path / "elsewhere.png")
        written = json.loads((tmp_path / "out" / MANIFEST).read_text())
        digest = written["differences.png"]
        (tmp_path / "out" / MANIFEST).write_text(json.dumps({**written, "../../elsewhere.png": digest}))
        write(make(runs / "base-0", baseline=None), tmp_path / "out")
        assert (figures / "mine.svg").read_text() == "<svg/>"
        assert (figures / "differences.svg").read_text() == "changed by hand"
        assert (figures / "differences.png").is_symlink()
        assert (tmp_path / "elsewhere.png").exists()
        assert not (figures / "pareto_parameters.svg").exists()
        (figures / "differences.png").unlink()
        for content in ("[]", "no JSON", '{"mine.svg": 1}'):
            (tmp_path / "out" / MANIFEST).write_text(content)
            write(make(runs), tmp_path / "out")
            assert (figures / "mine.svg").exists()


class Links(HTMLParser):
    """The addresses that a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.images = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.images += tag == "img"
        self.addresses += [value or "" for name, value in attrs if name in {"src", "href"}]


class TestSweeps:
    @pytest.fixture
    def sweep(self, tmp_path: Path, composed: Compose) -> Path:
        for lr in (0.001, 0.003, 0.01, 0.03, 0.1):
            for p in (0.0, 0.25, 0.5):
                tree = composed("name=s", "data=mnist5k", f"optimizer.lr={lr}", f"regularization.dropout={p}")
                for seed in range(2):
                    accuracy = round(0.95 - 0.03 * abs(np.log10(lr / 0.01)) + 0.002 * seed, 3)
                    write_run(tmp_path / "sweep" / f"{lr}-{p}-{seed}", tree, seed=seed, accuracy=accuracy)
        return tmp_path / "sweep"

    def test_swept_numbers_are_drawn(self, sweep: Path) -> None:
        made = make(sweep, baseline=None)
        names = [figure.name for figure in made.figures if figure.section == "settings"]
        assert names == [
            *("setting_regularization_dropout", "setting_optimizer_lr", "parallel_coordinates", "importance"),
        ]
        shares = {v["setting"]: v["share"] for v in made.figures[-4].spec["data"]["values"]}
        assert shares["optimizer.lr"] > 0.9
        assert shares["regularization.dropout"] == 0.0

    def test_too_many_arms_for_the_curves(self, sweep: Path, tmp_path: Path) -> None:
        made = make(sweep, baseline=None)
        assert len(made.rows) == 15
        drawn = {value["arm"] for value in made.figures[0].spec["data"]["values"]}
        assert len(drawn) == CURVES
        assert made.comparison.arms[made.comparison.baseline].label in drawn
        write(made, tmp_path / "out")
        assert "The figures show 12 of 15 arms" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize("image_size", [28, 32])
def test_a_trained_run_keeps_what_a_report_needs(
    image_size: int, mnist_train: Callable[..., int], small: list[str]
) -> None:
    padding = 2 if image_size == 28 else 0
    settings = [f"data.image_size={image_size}", f"model.padding={padding}", "hydra.run.dir=run"]
    assert mnist_train(*small, *settings) == 0
    assert json.loads(Path("run/run.json").read_text())["macs"] == 416_520
    with np.load("run/predictions.npz") as archive:
        logits, labels, worst, images = (archive[name] for name in ("logits", "labels", "worst", "worst_images"))
    shares = np.exp(logits - logits.max(axis=1, keepdims=True).astype(np.float64))
    own = (shares / shares.sum(axis=1, keepdims=True))[np.arange(1000), labels]
    assert worst.tolist() == own.argsort(kind="stable")[:100].tolist()
    stored = mnist5k(mean=0.0, std=1.0, image_size=image_size).test.images[worst, 0].mul(255).round().byte().numpy()
    assert np.array_equal(images, stored)
    made = make("run", baseline=None)
    assert len(made.comparison.hard_digits) == 30
    assert made.comparison.hard_digits[0].pixels.shape == (image_size, image_size)


@pytest.mark.usefixtures("drawn")
def test_a_report_of_runs_without_images(tmp_path: Path, composed: Compose) -> None:
    run = write_run(tmp_path / "run", composed("data=mnist5k"))
    with np.load(run / "predictions.npz") as archive:
        arrays = {name: archive[name] for name in ("logits", "labels")}
    np.savez(run / "predictions.npz", **arrays)
    write(make(run, baseline=None), tmp_path / "out")
    assert "No run stored the images" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(("preset", "more"), [(["sweep=search"], " hydra.mode=RUN"), ([], "")])
def test_the_command_of_a_run_starts_no_sweep(preset: list[str], more: str, tmp_path: Path, composed: Compose) -> None:
    run = read_run(write_run(tmp_path / "run", composed("data=mnist5k"), seed=3, overrides=preset))
    assert run_command(run) == " ".join(["mnist-train", *preset, "seed=3", "name=test"]) + more


def test_figures_follow_the_schema_of_vega_lite(runs: Path) -> None:
    for figure in make(runs).figures:
        for spec in (for_page(figure), for_file(figure)):
            json.dumps(spec, allow_nan=False)
            altair.Chart.from_dict(spec)


def test_a_report_needs_neither_torch_nor_wandb() -> None:
    program = "import sys, mnist_exp.cli.report; print([name for name in ('torch', 'wandb') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.usefixtures("drawn")
def test_text_in_records_stays_text_in_every_format(
    tmp_path: Path, composed: Compose, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "\x1b]0;owned\x07 ![x](https://example.org/x.png) [y](javascript:alert(1)) <img src=x> | ```"
    write_run(tmp_path / "good", composed("name=good", "data=mnist5k"))
    write_run(tmp_path / "bad", composed("name=bad", "data=mnist5k"), status="failed", error=evil)
    write_run(
        tmp_path / "sum", composed("name=sum", "data=mnist5k"), seed=1, status="failed", error="=cmd|' /C calc'!A0"
    )
    made = make(tmp_path / "*", baseline=None)
    write(made, tmp_path / "out")
    markdown = (tmp_path / "out" / "report.md").read_text()
    assert "owned" in markdown, "the reason is shown"
    assert not re.search(r"\x1b|\x07|<img|[^\\]\]\(https|[^\\]\]\(javascript|javascript:|https://example", markdown)
    lines = list(csv.reader(io.StringIO((tmp_path / "out" / "results.csv").read_text())))
    cells = [cell for line in lines for cell in line]
    assert any("cmd|" in cell for cell in cells)
    assert not [cell for cell in cells if re.match(r"[=+@-]\D", cell)]
    print_summary(made, [tmp_path / "out" / "report.html"])
    out = capsys.readouterr().out
    assert "owned" in out
    assert "\x1b" not in out
    assert "\x07" not in out
