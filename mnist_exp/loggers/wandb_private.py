"""What this project takes from W&B that W&B does not promise to keep, and nothing else does: about wandb 0.31.

Where another version lacks a part, the run goes on without it, slower or with a vaguer message. tests/test_private_parts.py
fails as soon as the installed version lacks one.
"""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

# What W&B raises when its service is gone, besides broken pipes, and the modules that define it.
DEAD_SERVICE = {
    "HandleAbandonedError": "wandb.sdk.mailbox.mailbox_handle",
    "MailboxClosedError": "wandb.sdk.mailbox.mailbox",
    "ServicePollForTokenError": "wandb.sdk.lib.service.service_port_file",
    "WandbServiceConnectionError": "wandb.sdk.lib.service.service_token",
}
# What W&B's service writes into its log when it gives up sending the rows of a run.
ROWS_REFUSED = "filestream: fatal error"
# The setting for the seconds that W&B waits for its service to start.
SERVICE_WAIT = "x_service_wait"


def is_of_a_dead_service(error: Exception) -> bool:
    """Whether W&B raised this because there is no service, or not any more: these exceptions have no public base class."""
    return type(error).__name__ in DEAD_SERVICE


def disable_statistics() -> None:
    """Turn off W&B's statistics about itself: they wait for ever for a service that does not start. No setting does that."""
    with suppress(ImportError):
        from wandb.analytics.opentelemetry import opentelemetry_proxy

        opentelemetry_proxy.disable()


@cache
def list_packages_once() -> None:
    """Keep the list of installed packages that W&B makes for ``requirements.txt``.

    It parses the metadata of all of them for each run, which takes longer than the rest of the start.
    """
    from wandb import util

    if hasattr(util, "working_set"):
        packages = tuple(util.working_set())
        util.working_set = lambda: packages


def server_refused_rows(part: Path) -> bool:
    """Whether the server refused rows of a run for good, which W&B tells its log only.

    Args:
        part: W&B's folder of the run, such as ``wandb/run-20261121_101010-ID``.

    Raises:
        OSError: there is no log.
    """
    return ROWS_REFUSED in (part / "logs" / "debug-internal.log").read_text(encoding="utf-8")


def record_from(body: bytes) -> Any:
    """One record of a ``run-ID.wandb`` file. W&B has no public reader of them.

    Raises:
        ValueError: this is no record.
    """
    from wandb.proto import wandb_internal_pb2

    record_type: Any = wandb_internal_pb2.Record  # type: ignore[attr-defined]  # its stub leaves it out
    try:
        return record_type.FromString(body)
    except Exception as error:  # of protobuf's, which has several implementations
        raise ValueError("no record") from error


def staging_folder() -> Path:
    """Where W&B puts copies of the files that it is about to upload."""
    return Path(import_module("wandb.sdk.artifacts.staging").get_staging_dir()).resolve()


def report_model(report: Any) -> Any:
    """What wandb-workspaces would send for a report, as its pydantic model; it has no public way to look at it first."""
    return report._to_model()  # noqa: SLF001  # no public name, see above
