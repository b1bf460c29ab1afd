"""Pictures of networks: every picture of the documentation exists, with the right labels."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    specification = importlib.util.spec_from_file_location("draw", ROOT / "scripts" / "draw.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_pictures_of_the_documentation_are_there(script: ModuleType) -> None:
    files = {path.stem for path in (ROOT / "docs" / "pictures").glob("*.png")}
    assert files == set(script.PICTURES)


@pytest.mark.parametrize("name", ["lenet5", "lenet5_1998", "lenet5_wide", "mlp"])
def test_drawn_as_committed(name: str, script: ModuleType) -> None:
    """The size follows from the layers; pixels may differ with versions of what draws them."""
    picture = script.draw(script.PICTURES[name])
    with Image.open(ROOT / "docs" / "pictures" / f"{name}.png") as committed:
        assert abs(picture.width - committed.width) < 30
        assert abs(picture.height - committed.height) < 30
    assert len(picture.getcolors(100_000)) > 5


def test_labels(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(script.ImageDraw.ImageDraw, "text", lambda self, place, text, *rest: said.append(text))
    script.draw(["model=lenet5"])
    assert said[0] == "LeNet-5: 61,706 parameters"
    assert [said[i : i + 3] for i in range(1, len(said), 3)] == [
        ["image", "1x28x28", ""],
        ["conv1", "6x28x28", "156"],
        ["pool1", "6x14x14", ""],
        ["conv2", "16x10x10", "2,416"],
        ["pool2", "16x5x5", ""],
        ["linear1", "120", "48,120"],
        ["linear2", "84", "10,164"],
        ["linear3", "10", "850"],
    ]


def test_the_command(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    script.main(["model=mlp", "model.hidden=[32]", "--output", "small.png"])
    assert capsys.readouterr().out == "small.png\n"
    with Image.open("small.png") as image:
        assert image.format == "PNG"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model=lenet6", "lenet6"),
        ("model.hidden=[0]", "draw.py: model.hidden.0=0 should be greater than or equal to 1\n"),
        ("model.wings=2", "model.wings"),
    ],
)
def test_mistakes(override: str, said: str, script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        script.main([override])
    assert leaving.value.code == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert "pydantic" not in shown
