"""The comparison as a W&B Report in the project of its runs.

Only ``publish`` uses the network.
"""

from __future__ import annotations

import json
import os
import shlex
import warnings
from collections import Counter
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from mnist_exp.errors import UsageError
from mnist_exp.loggers.wandb_private import report_model
from mnist_exp.loggers.wandb_service import end_service, start_service, within
from mnist_exp.reports.build import Report
from mnist_exp.reports.collect import Arm
from mnist_exp.reports.figures import CURVES, shown_arms, style
from mnist_exp.reports.markdown import METHOD, arms_table, baseline_sentence, heading, pairs_table, problems_table
from mnist_exp.runs import Run
from mnist_exp.runs.record import WandbRun

SECONDS = 60.0  # the longest wait for the server, from login to the saved report
ONE_LINE_AN_ARM = "config.trainer.epochs"  # equal in all runs of an arm, so grouping by it draws one line


def project_of(report: Report) -> tuple[str | None, str]:
    """The entity (None: the account's default) and the project of most runs.

    Raises:
        UsageError: none of the runs was logged to W&B.
    """
    places: Counter[tuple[str | None, str]] = Counter()
    for run in _runs(report):
        if identity := _identity(run):
            places[identity.entity, str(identity.project)] += 1
    if not places:
        raise UsageError("--wandb: none of these runs was logged to Weights & Biases; train with logger=wandb")
    entities = [entity for (entity, _), _ in places.most_common() if entity]  # offline runs have none
    return (entities[0] if entities else None), places.most_common(1)[0][0][1]


def specification(report: Report) -> dict[str, Any]:
    """The content that ``publish`` sends, except the server's id of the project. Does not use the network."""
    entity, project = project_of(report)
    workspaces = _workspaces()
    made = workspaces.Report(
        project=project, entity=entity or "", title=heading(report.comparison), description=report.headline[:900], width="fluid",
        blocks=_blocks(report, workspaces, entity, project, server=False),
    )  # fmt: skip
    model = report_model(made)
    return {
        "entityName": entity,
        "projectName": project,
        "displayName": model.display_name,
        "description": model.description,
        "spec": json.loads(model.spec.model_dump_json(by_alias=True, exclude_none=True)),
    }


def publish(report: Report, place: str | None = None) -> str:
    """Save the report on the server that W&B is logged in to, and return its address.

    Args:
        place: PROJECT or ENTITY/PROJECT in which the report may be saved; the records of runs, which may be another
            person's, do not decide it. None: WANDB_ENTITY and WANDB_PROJECT, else mnist-exp of the account.

    Raises:
        UsageError: no API key, the runs are in another project, or the server does not answer in time or refuses.
    """
    entity, project = project_of(report)
    workspaces = _workspaces()
    import wandb

    start_service()
    try:
        # Checked here, because wandb.Api would ask the user.
        if not wandb.login(prompt=False, verify=False):
            raise UsageError("--wandb: no API key is configured; wandb login, or --wandb-dry-run")
    except wandb.errors.Error as error:
        raise UsageError(f"--wandb: the API key cannot be used: {' '.join(str(error).split())}") from error
    addresses: list[str] = []

    def save() -> None:
        own = wandb.Api().default_entity
        owner = entity or own
        allowed_entity, _, allowed_project = (place or os.environ.get("WANDB_PROJECT") or "mnist-exp").rpartition("/")
        if project != allowed_project or owner not in (
            {allowed_entity} if allowed_entity else {own, os.environ.get("WANDB_ENTITY")}
        ):
            raise UsageError(
                f"the runs are in project {project} of {owner}; if the report is to be saved there, type "
                f"--wandb-project {shlex.quote(f'{owner}/{project}')}"
            )
        made = workspaces.Report(
            project=project, entity=owner, title=heading(report.comparison), description=report.headline[:900], width="fluid",
            blocks=_blocks(report, workspaces, owner, project, server=True),
        )  # fmt: skip
        made.save()
        addresses.append(str(made.url))

    try:
        answered = within(SECONDS, save)
    except Exception as error:
        end_service()
        raise UsageError(f"--wandb: {' '.join(str(error).split())[:300]}") from error
    if not answered:
        end_service()
        raise UsageError(f"--wandb: the server did not answer within {SECONDS:g} s; --wandb-dry-run needs none")
    return addresses[0]


def _workspaces() -> ModuleType:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # it uses pydantic's old interface
            import wandb_workspaces.reports.v2 as workspaces
    except ImportError as error:
        raise UsageError("--wandb needs wandb-workspaces: pip install 'mnist-exp[workspaces]'") from error
    return workspaces  # type: ignore[no-any-return, unused-ignore]  # typed or not, by its version


def _runs(report: Report) -> list[Run]:
    return [run for arm in report.comparison.arms for run in [*arm.runs.values(), *arm.others]]


def _identity(run: Run) -> WandbRun | None:
    identity = run.record.wandb
    return identity if identity is not None and identity.mode in {"online", "offline"} else None


def _blocks(report: Report, w: ModuleType, entity: str | None, project: str, *, server: bool) -> list[Any]:
    """The blocks of the report; ``w`` is wandb_workspaces.reports.v2."""
    comparison = report.comparison
    arms = [arm for arm in shown_arms(report.rows) if _ids(arm)]
    of_project = {"entity": entity, "project": project} if server else {}
    sets = [
        w.Runset(name=arm.label[:100], filters=f"ID in {_ids(arm)!r}", groupby=[ONE_LINE_AN_ARM], **of_project)
        for arm in arms
    ]
    # Not grouped, because these panels compare single runs.
    all_runs = w.Runset(name="all runs", filters=f"ID in {[i for arm in arms for i in _ids(arm)]!r}", **of_project)
    for position, (arm, runset) in enumerate(zip(arms, sets, strict=True)):
        runset.run_settings = {run_id: w.RunSettings(color=style(position)[0]) for run_id in _ids(arm)}
    curves = [
        w.LinePlot(
            title=f"{split} {metric}", x="epoch", y=[f"{split}/{metric}"], groupby=ONE_LINE_AN_ARM,
            groupby_aggfunc="mean", groupby_rangefunc="minmax",
        )
        for split, metric in (("train", "loss"), ("test", "loss"), ("train", "accuracy"), ("test", "accuracy"))
    ]  # fmt: skip
    bars = [
        w.BarPlot(title=title, metrics=[metric], groupby=ONE_LINE_AN_ARM, groupby_aggfunc="mean", groupby_rangefunc="minmax")
        for title, metric in (("test accuracy", "test_accuracy"), ("parameters", "parameters"), ("seconds", "seconds"))
    ]  # fmt: skip
    columns = [w.ParallelCoordinatesPlotColumn(metric=w.Config(column.key)) for column in comparison.varied[:12]]
    columns.append(w.ParallelCoordinatesPlotColumn(metric=w.SummaryMetric("test_accuracy")))
    compare = [
        w.ParallelCoordinatesPlot(columns=columns, title="settings and accuracy"),
        w.ParameterImportancePlot(with_respect_to="test_accuracy"),
        w.RunComparer(diff_only=True),
        w.MediaBrowser(title="errors", media_keys=["confusion_matrix", "worst_digits"]),
    ]
    return [
        w.MarkdownBlock(text=report.headline),
        w.MarkdownBlock(text="\n".join(f"- {note}" for note in [*comparison.notes[:20], *_left_out(report, arms)])),
        w.H2(text="Arms"),
        w.MarkdownBlock(text=arms_table(report.rows)),
        w.H2(text="Curves"),
        w.PanelGrid(runsets=sets, panels=curves),
        w.H2(text=f"Against the baseline: {comparison.arms[comparison.baseline].label}"),
        w.MarkdownBlock(text=f"{baseline_sentence(comparison)} {METHOD}\n\n{pairs_table(report.pairs)}"),
        w.PanelGrid(runsets=sets, panels=bars),
        w.H2(text="Settings and runs"),
        w.PanelGrid(runsets=[all_runs], panels=compare),
        w.H2(text="Not counted"),
        w.MarkdownBlock(text=problems_table(comparison)),
        w.H2(text="Runs"),
        w.MarkdownBlock(text=_links(report)),
    ]


def _ids(arm: Arm) -> list[str]:
    return [str(identity.id) for run in arm.curves() if (identity := _identity(run))]


def _left_out(report: Report, arms: Sequence[Arm]) -> list[str]:
    runs = _runs(report)
    unknown = sum(_identity(run) is None for run in runs)
    notes = [f"{unknown} of {len(runs)} runs were not logged to W&B: they are in the tables only"] if unknown else []
    if len(report.rows) > len(arms):
        notes.append(f"Panels show {len(arms)} of {len(report.rows)} arms (at most {CURVES}); the tables show all")
    return notes


def _links(report: Report) -> str:
    lines = []
    for arm in report.comparison.arms:
        links = [
            f"[seed {seed}]({identity.url})" if identity.url else f"seed {seed} (offline, `{identity.id}`)"
            for seed, run in arm.runs.items()
            if (identity := _identity(run))
        ]
        lines.append(f"- {arm.label}: {', '.join(links) or 'not on W&B'}")
    return "\n".join(lines)
