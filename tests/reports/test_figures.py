"""Ticks, labels and legends of figures, from the specifications and from the drawings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, fromstring

import pytest
import vl_convert
from synthetic_runs import write_run

from mnist_exp.reports.axes import epoch_ticks, in_lines, log_ticks, swept, window
from mnist_exp.reports.build import Report, build
from mnist_exp.reports.collect import compare, paths_of
from mnist_exp.reports.figures import Figure, draw, for_file, for_page

SVG = "{http://www.w3.org/2000/svg}"
Compose = Callable[..., dict[str, Any]]


def make(folder: Path) -> dict[str, Figure]:
    return {figure.name: figure for figure in report(folder).figures}


def report(folder: Path) -> Report:
    return build(compare(paths_of([str(folder)])))


def read_texts(element: Element) -> list[str]:
    """The visible text: Vega keeps labels that would overlap, but makes them transparent."""
    found = (node for node in element.iter(f"{SVG}text") if node.get("opacity") != "0")
    return [text for node in found if (text := " ".join(part.strip() for part in node.itertext() if part.strip()))]


def axes(figure: Figure, page_width: int | None = None) -> list[list[str]]:
    """The labels of each axis as they are drawn, those of several lines joined: x first, then y."""
    spec = for_file(figure) if page_width is None else {**for_page(figure), "width": page_width}
    drawn = fromstring(vl_convert.vegalite_to_svg(spec))
    return [read_texts(node) for node in drawn.iter() if "role-axis-label" in node.get("class", "")]


def texts(figure: Figure) -> list[str]:
    return read_texts(fromstring(draw(figure)))


@pytest.fixture
def write(tmp_path: Path, composed: Compose) -> Callable[..., Path]:
    """A run below ``runs``, its settings as typed."""

    def run(*overrides: str, name: str = "lenet5", seed: int = 0, **more: Any) -> Path:
        path = tmp_path / "runs" / f"{len(list(tmp_path.glob('runs/*')))}"
        write_run(path, composed(f"name={name}", "data=mnist5k", *overrides), seed=seed, **more)
        return tmp_path / "runs"

    return run


class TestEpochs:
    @pytest.mark.parametrize(
        ("last", "ticks"),
        [
            (1, [1]),
            (2, [1, 2]),
            (3, [1, 2, 3]),
            (10, list(range(1, 11))),
            (12, [2, 4, 6, 8, 10, 12]),
            (50, list(range(5, 51, 5))),
            (1000, list(range(100, 1001, 100))),
        ],
    )
    def test_whole_and_each_once(self, last: int, ticks: list[int]) -> None:
        assert epoch_ticks(range(1, last + 1)) == ticks

    @pytest.mark.parametrize("epochs", [1, 2, 3, 10, 50])
    def test_as_drawn(self, epochs: int, write: Callable[..., Path]) -> None:
        figure = make(write(epochs=epochs))["curves_loss"]
        assert axes(figure)[0] == [str(tick) for tick in epoch_ticks(range(1, epochs + 1))]

    def test_one_epoch_is_a_point(self, write: Callable[..., Path]) -> None:
        write(epochs=3, seed=1)
        lines = make(write("optimizer.lr=0.1", epochs=1))["curves_loss"].spec["layer"][1]
        assert lines["mark"]["point"]["opacity"] == 1
        assert make(write(epochs=3).parent / "runs" / "0")["curves_loss"].spec["layer"][1]["mark"]["point"] == {
            "size": 45, "opacity": 0,
        }  # fmt: skip

    def test_runs_of_different_length(self, write: Callable[..., Path]) -> None:
        write(epochs=3)
        caption = make(write(epochs=2, seed=1))["curves_loss"].caption
        assert caption.endswith("n = 2 seeds. Where the runs of an arm have different numbers of epochs, late points are "
                                "means of fewer.")  # fmt: skip


class TestTicks:
    @pytest.mark.parametrize(
        ("seconds", "title", "labels"),
        [
            ((0.1, 3.0), "seconds of training", {"0.1", "1", "2"}),
            ((10.0, 20.0), "seconds of training", {"10", "20"}),
            ((60.0, 240.0), "minutes of training", {"1", "2", "3", "4"}),
            ((3600.0, 36000.0), "hours of training", {"1", "10"}),
        ],
    )
    def test_times(
        self, seconds: tuple[float, ...], title: str, labels: set[str], write: Callable[..., Path], tmp_path: Path
    ) -> None:
        for lr, spent in zip((0.1, 0.2), seconds, strict=True):
            write(f"optimizer.lr={lr}", accuracy=0.9 + lr / 10, seconds={"train": spent})
        figure = make(tmp_path / "runs")["pareto_seconds"]
        assert figure.spec["encoding"]["x"]["title"] == title
        drawn = axes(figure)[0]
        assert labels <= set(drawn)
        assert len(set(drawn)) == len(drawn)
        assert not any("e" in label for label in drawn)

    def test_swept_numbers_are_the_ticks(self, write: Callable[..., Path], tmp_path: Path) -> None:
        for lr in ("0.003", "0.01", "0.03", "0.1"):
            write(f"optimizer.lr={lr}", accuracy=0.97)
        assert axes(make(tmp_path / "runs")["setting_optimizer_lr"])[0] == ["0.003", "0.01", "0.03", "0.1"]

    @pytest.mark.parametrize(
        ("low", "high", "ticks"),
        [
            (0.1, 3.0, [0.1, 0.2, 0.5, 1, 2]),
            (6000, 6e4, [1e4, 2e4, 5e4]),
            (1e-6, 10, [1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.1, 1, 10]),
        ],
    )
    def test_logarithmic(self, low: float, high: float, ticks: list[float]) -> None:
        assert log_ticks(low, high) == ticks

    def test_zero_and_small_numbers_do_not_overlap(self) -> None:
        assert swept([0, 1e-5, 1e-3])["scale"] == {"nice": False, "padding": 15, "type": "symlog", "constant": 1e-5}
        assert swept([0.0, 0.25, 0.5])["scale"] == {"nice": False, "padding": 15, "zero": False}
        assert "values" not in swept(range(10, 27))["axis"]

    @pytest.mark.parametrize("accuracy", [0.982, 1.0, 0.0])
    def test_equal_values_have_an_axis_with_their_number(
        self, accuracy: float, write: Callable[..., Path], tmp_path: Path
    ) -> None:
        for lr, spent in (("0.003", 1), ("0.01", 2), ("0.1", 3)):
            write(f"optimizer.lr={lr}", accuracy=accuracy, epochs=1, seconds={"train": spent})
        figures = make(tmp_path / "runs")
        for name in ("pareto_seconds", "setting_optimizer_lr", "accuracy"):
            (shares,) = [labels for labels in axes(figures[name]) if labels[0].endswith("%")]
            assert f"{100 * accuracy:g}%" in shares, name
            assert len(set(shares)) == len(shares) >= 2, name
            assert all(0 <= float(share[:-1]) <= 100 for share in shares), name

    def test_close_values(self, write: Callable[..., Path], tmp_path: Path) -> None:
        for lr, accuracy in (("0.003", 0.9871), ("0.01", 0.9872), ("0.1", 0.9873)):
            write(f"optimizer.lr={lr}", accuracy=accuracy, images=10_000)
        for figure in make(tmp_path / "runs").values():
            if figure.name.startswith(("pareto", "setting", "accuracy", "curves")):
                assert all(len(set(labels)) == len(labels) for labels in axes(figure)), figure.name

    def test_a_window_keeps_within_its_limits(self) -> None:
        assert window([0.9, 1.0], high=1.0)["domain"] == [0.885, 1.0]
        assert window([0.0])["domain"] == [-1.0, 1.0]


class TestLabels:
    LONG = ("[512,512,512,512,512]", "[512,512,512,512,256]", "[8,8]", "[16,16]")

    @pytest.fixture
    def long(self, write: Callable[..., Path], tmp_path: Path) -> Path:
        for hidden in self.LONG:
            for lr in ("0.003", "0.1"):
                write("model=mlp", f"model.hidden={hidden}", f"optimizer.lr={lr}", "regularization=label_smoothing",
                      name="a-rather-long-name", accuracy=0.9 + 0.01 * len(list(tmp_path.glob("runs/*"))))  # fmt: skip
        return tmp_path / "runs"

    @pytest.mark.parametrize("page_width", [None, 1100, 350])
    def test_each_arm_has_its_own_whole_label(self, page_width: int | None, long: Path) -> None:
        made = report(long)
        arms = {arm.label for arm in made.comparison.arms}
        assert len(arms) == 8
        figures = {figure.name: figure for figure in made.figures}
        baseline = made.comparison.arms[made.comparison.baseline].label
        for name, expected in (("accuracy", arms), ("differences", arms - {baseline})):
            assert set(axes(figures[name], page_width)[1]) == expected, name

    def test_legends_in_files_are_whole(self, long: Path) -> None:
        made = report(long)
        for figure in made.figures:
            said = texts(figure)
            assert not any("…" in text for text in said), figure.name
            if figure.switchable:
                assert {arm.label for arm in made.comparison.arms} <= set(said), figure.name

    def test_legends_show_lines(self, long: Path) -> None:
        colour = make(long)["curves_loss"].spec["layer"][1]["encoding"]["color"]
        assert (colour["legend"]["symbolType"], colour["legend"]["columns"]) == ("stroke", 1)

    def test_the_front_is_numbered_and_named(self, write: Callable[..., Path], tmp_path: Path) -> None:
        for lr, accuracy, spent in ((1, 0.9, 1.0), (2, 0.92, 2.0), (3, 0.91, 3.0), (4, 0.9, 1.0)):
            write(f"optimizer.lr={lr}", accuracy=accuracy, seconds={"train": spent})
        figure = make(tmp_path / "runs")["pareto_seconds"]
        values = {value["arm"]: value["text"] for value in figure.spec["data"]["values"]}
        assert values == {"lr 1": "1, 2", "lr 2": "3", "lr 3": "", "lr 4": ""}
        assert ": 1 lr 1; 2 lr 4; 3 lr 2. Triangles" in figure.caption
        assert {"1 lr 1", "2 lr 4", "3 lr 2", "1, 2", "3"} <= set(texts(figure))
        on_page = for_page(figure)["layer"][1]["encoding"]
        assert (on_page["color"]["legend"], on_page["shape"]["legend"]) == (None, None)

    def test_lines(self) -> None:
        assert in_lines("mlp lr=0.1 hidden=[512,512,512,512,512]", 30) == ["mlp lr=0.1", "hidden=[512,512,512,512,512]"]
        assert in_lines("[512,512,512,512]", 10) == ["[512,512,", "512,512]"]
        assert in_lines("x" * 25, 10) == ["x" * 10, "x" * 10, "x" * 5]


def test_captions_have_the_number_of_seeds(write: Callable[..., Path]) -> None:
    for seed in range(3):
        write(seed=seed)
    figures = make(write("optimizer.lr=0.1"))
    for name in ("curves_loss", "accuracy", "confusion", "per_class", "reliability"):
        assert "n = 1 to 3 seeds" in figures[name].caption


def test_any_number_of_classes_in_their_order(write: Callable[..., Path]) -> None:
    figures = make(write(classes=12, accuracy=0.5))
    digits = [*map(str, range(12))]
    assert axes(figures["confusion"]) == [digits, digits]
    assert axes(figures["per_class"])[0] == digits


def test_the_matrix_begins_with_the_best_arm(write: Callable[..., Path]) -> None:
    write("optimizer.lr=0.01", accuracy=0.9)
    figure = make(write("optimizer.lr=0.1", accuracy=0.95))["confusion"]
    assert figure.spec["params"][0]["value"] == "lr 0.1"
    assert figure.caption.endswith("In the files: lr 0.1.")
