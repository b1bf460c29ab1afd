"""What a run shows on W&B besides its curves: summary, pictures, files; and the mark of uploaded files."""

from __future__ import annotations

import base64
import io
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_exp.loggers.wandb_private import server_refused_rows
from mnist_exp.runs.files import RunDirectoryError, exists
from mnist_exp.runs.reading import read_predictions, read_record
from mnist_exp.training.events import TrainingEnded, curves_of

if TYPE_CHECKING:
    import numpy as np
    import wandb
    from numpy.typing import NDArray


SOURCES = {".py", ".c", ".h"}  # suffixes of files of code
# The name in the summary of the best value of any epoch is NAME.max or NAME.min. Test values select nothing, so none is best.
BEST = {"val/accuracy": "max", "val/loss": "min"}
STYLE = (
    "<style>body{font:14px sans-serif}td,th{padding:2px 12px;text-align:right}img{image-rendering:pixelated}</style>"
)


def origin_of(directory: Path, arm: str | None) -> dict[str, str]:
    """What W&B's configuration has besides the settings: the arm, the run directory and the commit of the code."""
    origin = {"run_directory": str(directory)}
    if arm is not None:
        origin["arm"] = arm
    with suppress(RunDirectoryError):
        if git := read_record(directory).git:
            origin["git_commit"] = f"{git.commit}-dirty" if git.dirty else git.commit
    return origin


def define_metrics(run: wandb.Run, *, best: bool) -> None:
    """Draw every curve against the epoch.

    Args:
        best: keep the best and the last value of validation metrics in the summary. A W&B sweep cannot optimize such a metric.
    """
    run.define_metric("epoch")
    run.define_metric("*", step_metric="epoch")
    for name, kind in BEST.items() if best else ():
        run.define_metric(name, step_metric="epoch", summary=f"{kind},last")


def summary_of(event: TrainingEnded, parameters: int, *, best: bool) -> dict[str, Any]:
    """The summary at the end: the figures of the result under the names of the curves, and figures without a curve.

    Args:
        best: as for ``define_metrics``: W&B itself keeps validation metrics.
    """
    named = {name: value for name, value in curves_of(event.summary).items() if not best or name not in BEST}
    return {**named, "status": event.status, "parameters": parameters}


def errors_as_media(directory: Path) -> dict[str, Any]:
    """The confusion matrix, and the worst test images as a picture and as a table; empty without predictions."""
    import wandb

    from mnist_exp.pictures import confusion_matrix, worst_digits

    try:
        arrays = read_predictions(directory)
    except FileNotFoundError:
        return {}
    media: dict[str, Any] = {"confusion_matrix": wandb.Image(confusion_matrix(arrays["logits"], arrays["labels"]))}
    if "worst" in arrays:
        worst = arrays["logits"], arrays["labels"], arrays["worst"], arrays["worst_images"]
        media["worst_digits"] = wandb.Image(worst_digits(*worst))
        media["errors"] = wandb.Html(table_of_errors(*worst), inject=False)
    return media


def table_of_errors(
    logits: NDArray[np.float32], labels: NDArray[np.int64], worst: NDArray[np.int64], worst_images: NDArray[np.uint8]
) -> str:
    """The misclassified images among the worst, as one HTML page: image, label, prediction and its probability.

    No ``wandb.Table``: with images it is an artifact of a file for each image, for which W&B asks the server while the run waits,
    and of which an offline run leaves copies in the user's home.

    Args:
        logits, labels: of the whole test set, (N, C) and (N,).
        worst, worst_images: indices (K,) and pixels (K, S, S), or (K, S, S, 3) in colour, worst first.
    """
    import numpy as np

    from mnist_exp.pictures import picture_of

    rows = []
    for index, pixels in zip(worst, worst_images, strict=True):
        odds = np.exp(logits[index] - logits[index].max())
        predicted = int(odds.argmax())
        if predicted != labels[index]:
            file = io.BytesIO()
            picture_of(pixels).save(file, "png")
            image = f'<img width="56" src="data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}">'
            cells = (f"test image {index}", image, labels[index], predicted, f"{odds[predicted] / odds.sum():.1%}")
            rows.append("".join(f"<td>{cell}</td>" for cell in cells))
    heads = "".join(f"<th>{head}</th>" for head in ("", "image", "label", "prediction", "probability"))
    return f"{STYLE}<table><tr>{heads}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>\n"


def files_as_artifact(directory: Path, run_id: str) -> wandb.Artifact:
    """The files of the run directory, without W&B's own."""
    import wandb

    artifact = wandb.Artifact(f"run-{run_id}", type="run")
    for file in sorted(directory.rglob("*")):
        relative = file.relative_to(directory)
        # No links, which could point to any file of the user, and no pipes.
        if stat.S_ISREG(file.lstat().st_mode) and relative.parts[0] not in {"wandb", ".wandb"}:
            artifact.add_file(str(file), name=relative.as_posix(), skip_cache=True)
    return artifact


def code_as_artifact(config: Mapping[str, Any], directory: Path, run_id: str) -> wandb.Artifact:
    """The source files of this package and of the user's own modules that the configuration names, and ``config.yaml``.

    Packages that pip installed are left out: W&B has the list of their versions.
    """
    import wandb

    artifact = wandb.Artifact(f"code-{run_id}", type="code")
    for root, file in _sources(config):
        artifact.add_file(str(file), name=file.relative_to(root).as_posix(), skip_cache=True)
    resolved = directory / "config.yaml"
    if exists(resolved):
        artifact.add_file(str(resolved), name=resolved.name, skip_cache=True)
    return artifact


def _sources(config: Mapping[str, Any]) -> Iterator[tuple[Path, Path]]:
    """The folder in which each package is, and its source files."""
    for name in sorted({"mnist_exp", *_packages(config)}):
        module = sys.modules.get(name)
        origin = Path(str(getattr(module, "__file__", None) or ""))
        is_installed = {"site-packages", "dist-packages"}.intersection(origin.parts) or name in sys.stdlib_module_names
        if not origin.is_file() or (name != "mnist_exp" and is_installed):
            continue
        files = sorted(origin.parent.rglob("*")) if origin.name == "__init__.py" else [origin]
        root = origin.parent.parent if origin.name == "__init__.py" else origin.parent
        yield from ((root, file) for file in files if file.suffix in SOURCES and stat.S_ISREG(file.lstat().st_mode))


def _packages(node: Any) -> Iterator[str]:
    """The packages of all targets in a configuration."""
    if isinstance(node, Mapping) and isinstance(target := node.get("_target_"), str):
        yield target.partition(".")[0]
    for inner in node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ():
        yield from _packages(inner)


def mark_uploaded(part: Path) -> None:
    """Mark the files of an online run as uploaded, so that they are not uploaded again.

    Args:
        part: W&B's folder of the run.

    Raises:
        ConnectionError: the server refused rows.
    """
    if server_refused_rows(part):
        raise ConnectionError("the server refused rows of this run")
    for file in part.glob("run-*.wandb"):
        file.with_suffix(".wandb.synced").touch()
