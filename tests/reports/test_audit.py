"""Claims files, counted parameters, and an audit from the command to its documents."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from process_state import restored

from mnist_exp.cli import audit
from mnist_exp.config import check
from mnist_exp.reports.audit.claims import find_claims, read_claims
from mnist_exp.reports.audit.counting import count
from mnist_exp.reports.statistics import Interval

ROOT = Path(__file__).parents[2]
MADE_UP = ROOT / "examples" / "claims" / "made_up.yaml"


@pytest.fixture
def mnist_audit() -> Callable[..., int]:
    """``mnist-audit`` in this process; returns the exit status."""

    def run(*arguments: str) -> int:
        with restored():
            try:
                audit.main(arguments)
            except SystemExit as leaving:
                return int(leaving.code or 0)
        return 0

    return run


def claims_file(path: Path, model: str, source: str = "A report") -> Path:
    path.write_text(f"source: {source}\nmodels:\n  net:\n    {model}\n")
    return path


def test_the_made_up_report(
    mnist_audit: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One claim of each verdict; then the measured numbers are enough, and a larger number of seeds trains only what is new."""
    assert mnist_audit(str(MADE_UP), "--seeds", "3", "trainer.threads=1") == 0
    out = capsys.readouterr().out
    assert (
        "3 claims about results: 1 reproduced, 1 not reproduced, 1 cannot be told; 3 parameter counts: 2 correct, 1 wrong."
        in out
    )
    assert "52,544 is claimed; the layers sum to 52,650 (-106). It would follow if all biases are left out." in out
    (more,) = re.findall(r"More seeds: mnist-audit (\S+) --seeds (\d+) trainer.threads=1\n", out)
    assert more[0] == str(MADE_UP)
    assert 3 < int(more[1]) < 15
    document = (tmp_path / "outputs/audit/audit.md").read_text()
    assert re.search(
        r"\| small \| test accuracy \| \*\*cannot be told with 3 seeds \(\d+ would\)\*\* \| 0.887 \| .* \| 3 \|",
        document,
    )
    assert re.search(
        r"\| middle \| test accuracy \| reproduced \| about 91 % \| 9\d\.\d\d ± 0\.\d\d % \| .* \| 3 \|", document
    )
    assert "| layers.linear2 | 64 x 32 + 32 | 2,080 | 52,320 |" in document
    pictures = re.findall(r"\]\((figures/\S+)\)", document)
    assert len(pictures) == 4
    assert all("<svg" in (tmp_path / "outputs/audit" / picture).read_text() for picture in pictures)
    page = (tmp_path / "outputs/audit/audit.html").read_text()
    assert page.count("data:image/svg+xml;base64,") == 4
    assert "http" not in page.replace("http-equiv", "")

    (tmp_path / "outputs/sweeps").rename(tmp_path / "gone")
    assert mnist_audit(str(MADE_UP), "--seeds", "3", "trainer.threads=1") == 0
    assert (tmp_path / "outputs/audit/audit.md").read_text() == document
    assert not (tmp_path / "outputs/sweeps").exists(), "nothing is trained again"


def test_only_missing_seeds_are_trained(
    mnist_audit: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    recipe = "run: data=mnist5k data.limit=320 model=mlp 'model.hidden=[8]' trainer.epochs=2"
    file = claims_file(
        tmp_path / "own.yaml", f"{recipe}\n    epochs: {{1: {{train_loss: 2.3}}, 2: {{test_error: above 5 %}}}}"
    )
    assert mnist_audit(str(file), "--seeds", "1") == 0
    out = capsys.readouterr().out
    assert "cannot be told with 1 seed (3" in out
    assert "One run does not show how much results differ from seed to seed." in out
    assert mnist_audit(str(file), "--seeds", "2", "trainer.threads=1") == 0
    assert "sweep net: 1 job" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "outputs/audit/results.csv").read_text().splitlines()))
    assert [(row["recipe"], row["seed"], row["epoch"]) for row in rows] == [
        ("own/net", seed, epoch) for seed in "01" for epoch in "12"
    ]
    (tmp_path / "outputs/audit/results.csv").write_text("recipe,seed\nown/net,0\n")
    assert mnist_audit(str(file), "--seeds", "0") == 2
    assert "results.csv, line 2: should have the columns recipe, seed, epoch, train_loss" in capsys.readouterr().err


def test_a_run_that_fails_leaves_the_audit_of_the_others(
    mnist_audit: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    recipe = "run: data=mnist5k data.limit=320 model=mlp 'model.hidden=[8]' trainer.epochs=1 optimizer.lr=1e30"
    file = claims_file(tmp_path / "own.yaml", f"{recipe}\n    parameters: 6370\n    final: {{test_accuracy: 0.9}}")
    assert mnist_audit(str(file), "--seeds", "1") == 1
    out, err = capsys.readouterr()
    assert err.splitlines()[-1] == "mnist-audit: not all runs completed: own/net; the same command trains them again"
    assert "Not counted: outputs/sweeps/audit/own/net/net is diverged" in out.replace("mlp is", "net is")
    assert "1 parameter count: 1 correct, 0 wrong." in out


MISTAKES = {
    "run: model=mlp\n    final: {test_accuracy: 99.1}": 'models.net.final.test_accuracy="99.1" should be a fraction, or have a percent sign: 99.1 %',
    "run: model=mlp\n    final: {test_accuracy: good}": "models.net.final.test_accuracy=good should be a number with the digits of the report, such as 0.977, 97.7 % or above 0.98",
    "run: model=mlp\n    final: {test_acuracy: .9}": "models.net.final.test_acuracy is not a key; did you mean test_accuracy?",
    "run: model=mlp\n    parameters: many": "models.net.parameters=many should be a valid integer, unable to parse string as an integer",
    "run: model=mlp\n    epochs: {0: {test_loss: 1}}": "models.net.epochs.0=\"0\" should be greater than or equal to 1",
    "run: model=mlp seed=3": "models.net.run=model=mlp seed=3 sets seed, which does not belong to a recipe; leave it out",
    "run: -m model=mlp": "models.net.run=-m model=mlp holds -m; only settings KEY=VALUE are allowed",
    "run: ~logger": "models.net.run=~logger holds ~logger; only settings KEY=VALUE are allowed",
    "run: 'data.root=${oc.env:HOME}'": "models.net: run holds data.root=${oc.env:HOME}, and a claims file may not name code or Hydra's settings; put it into a file of your own, type --config-dir FOLDER, and name that file in run",
    "run: model=mlp 'x": "models.net.run=model=mlp 'x has a quote without a partner: No closing quotation",
    "run: model=mlp\n    run: model=lenet5": "run is there twice",
    "said: nothing": "models.net.run is missing",
    "run: model=mlpp": "models.net: model=mlpp is not a choice; choose from lenet5, lenet5_1998, mlp; did you mean mlp?",
    "run: trainer.epochs=3\n    epochs: {4: {test_loss: 1}}": "models.net: epochs.4 is claimed, and the recipe trains 3; add trainer.epochs=4 to run",
    "run: trainer.epochs=3\n    final: {test_loss: 1}\n    epochs: {3: {test_loss: 1}}": "models.net: final.test_loss and epochs.3.test_loss are the same claim, because the recipe trains 3 epochs; leave one out",
    "run: model._target_=os.system": "models.net: run holds model._target_=os.system, and a claims file may not name code or Hydra's settings; put it into a file of your own, type --config-dir FOLDER, and name that file in run",
}  # fmt: skip


@pytest.mark.parametrize("model", MISTAKES)
def test_a_mistake_is_one_line_and_trains_nothing(
    model: str, mnist_audit: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = claims_file(tmp_path / "own.yaml", model)
    assert mnist_audit(str(file)) == 2
    line = MISTAKES[model].replace("models.net.run=model=mlp 'x has", "models.net.run=model=mlp x has")
    assert capsys.readouterr().err.replace("'x has", "x has") == f"mnist-audit: {file}: {line}\n"
    assert list(tmp_path.iterdir()) == [file]


def test_mistakes_on_the_command_line(
    mnist_audit: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    good = claims_file(tmp_path / "own.yaml", "run: model=mlp")
    (tmp_path / "empty").mkdir()
    (tmp_path / "other.yaml").write_text("models: 3\n")
    (tmp_path / "my claims.yaml").write_text("models: 3\n")
    (tmp_path / "laughs.yaml").write_text("source: &a [x, x]\nmodels: [*a, *a]\n")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\x00")
    for arguments, line in [
        ([], "FILE (claims files, or folders of them (docs/audits.md)) is missing; type mnist-audit FILE"),
        (["empty"], "empty holds no claims file; expected files that end in .yaml"),
        (["gone.yaml"], "gone.yaml cannot be read: No such file or directory"),
        (["other.yaml"], "other.yaml is no claims file: it needs source and models; docs/audits.md describes it"),
        (["my claims.yaml"], "my claims.yaml: the name of a claims file should be letters, digits and . _ - only, 80 at most, because it is "
         "the name of a folder"),
        (["laughs.yaml"], "laughs.yaml cannot be read: it holds a YAML alias; write the values themselves"),
        (["bytes.yaml"], "bytes.yaml cannot be read: "),
        ([str(good), "trainer.epochs=1"], "trainer.epochs=1 changes what is computed; it belongs into run of the claims file"),
        ([str(good), "seed=3"], "seed=3 changes what is computed; type --seeds N"),
        ([str(good), "--seeds", "-1"], "--seeds -1 should be 0 or more"),
    ]:  # fmt: skip
        assert mnist_audit(*arguments) == 2
        err = capsys.readouterr().err
        assert err == f"mnist-audit: {line}\n" or (line.endswith(": ") and err.startswith(f"mnist-audit: {line}"))
        assert err.count("\n") == 1


def test_digits_of_a_claim(tmp_path: Path) -> None:
    shown = {
        ".99": (0.985, 0.995), "0.990": (0.9895, 0.9905), "99 %": (0.985, 0.995), "99.0%": (0.9895, 0.9905),
        "about 95 %": (0.945, 0.955), "above 0.98": (0.98, float("inf")), "below 1": (float("-inf"), 1.0),
    }  # fmt: skip
    for text, (low, high) in shown.items():
        file = claims_file(tmp_path / "own.yaml", f"run: model=mlp\n    final: {{test_accuracy: {text}}}")
        claimed = read_claims(file).claims.models["net"].final.test_accuracy
        assert claimed is not None
        assert claimed.text == text
        assert claimed.interval == Interval(pytest.approx(low), pytest.approx(high))  # type: ignore[arg-type]  # equal to a float


COUNTS = {
    ("study_b/mlp", 81_020): "the biases of layers.linear3 and layers.linear4 are left out",
    ("study_d/mlp", 123_412): "the whole network is counted twice",
    ("study_e/mlp", 52_650): "layers.linear1 is counted with 784 inputs (images of 28x28 in place of 32x32), not 1,024",
    ("study_d/lenet5", 61_720): "classifier.linear1 is counted with 400 inputs (maps of 5x5 in place of 4x4), not 256, which "
    "gives 61,706, 14 from the report's count",
    ("study_c/lenet5_regularized", 61_750): "classifier.norm1 (120 + 120 = 240) is left out",
    ("study_b/lenet5", 61_706): None,
}  # fmt: skip


@pytest.mark.parametrize(("preset", "claimed"), COUNTS)
def test_where_a_count_goes_wrong(preset: str, claimed: int, composed: Callable[..., dict[str, Any]]) -> None:
    counted = count(check(composed(f"experiment={preset}")), claimed)
    explanation = COUNTS[preset, claimed]
    assert counted.explanations == ((explanation,) if explanation else ())
    assert counted.is_wrong == (explanation is not None)


def test_claims_of_the_studies_name_each_preset_once() -> None:
    reports = [report for report in find_claims([ROOT / "claims"]) if report.path.stem.startswith("study_")]
    runs = [model.run for report in reports for model in report.claims.models.values()]
    presets = (ROOT / "conf" / "experiment").glob("study_*/*.yaml")
    assert sorted(runs) == sorted([f"experiment={path.parent.name}/{path.stem}"] for path in presets)
