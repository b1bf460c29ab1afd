"""All uses of W&B's private names, for wandb 0.31.

If another version lacks one, runs go on, but slower or with a less exact message; tests/test_private_parts.py fails.
"""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

# Exceptions that W&B raises without its service, besides broken pipes, and the modules that define them.
DEAD_SERVICE = {
    "HandleAbandonedError": "wandb.sdk.mailbox.mailbox_handle",
    "MailboxClosedError": "wandb.sdk.mailbox.mailbox",
    "ServicePollForTokenError": "wandb.sdk.lib.service.service_port_file",
    "WandbServiceConnectionError": "wandb.sdk.lib.service.service_token",
}
# W&B's service writes this into its log when it stops sending the rows of a run.
ROWS_REFUSED = "filestream: fatal error"
# The setting for the seconds that W&B waits for its service to start.
SERVICE_WAIT = "x_service_wait"


def is_of_a_dead_service(error: Exception) -> bool:
    """Whether W&B raised this because its service is not running; these exceptions have no public base class."""
    return type(error).__name__ in DEAD_SERVICE


def disable_statistics() -> None:
    """Turn off W&B's usage statistics, which wait without limit for a service that does not start; there is no setting."""
    with suppress(ImportError):
        from wandb.analytics.opentelemetry import opentelemetry_proxy

        opentelemetry_proxy.disable()


@cache
def list_packages_once() -> None:
    """Have W&B list the installed packages, for ``requirements.txt``, once for a process instead of once for a run.

    It takes longer than the rest of the start of a run.
    """
    from wandb import util

    if hasattr(util, "working_set"):
        packages = tuple(util.working_set())
        util.working_set = lambda: packages


def server_refused_rows(part: Path) -> bool:
    """Whether the server finally refused rows of a run, which W&B writes to its log only.

    Args:
        part: W&B's folder of the run, such as ``wandb/run-20261121_101010-ID``.

    Raises:
        OSError: there is no log.
    """
    return ROWS_REFUSED in (part / "logs" / "debug-internal.log").read_text(encoding="utf-8")


def record_from(body: bytes) -> Any:
    """Decode one record of a ``run-ID.wandb`` file; W&B has no public function for this.

    Raises:
        ValueError: it is not a record.
    """
    from wandb.proto import wandb_internal_pb2

    record_type: Any = wandb_internal_pb2.Record  # type: ignore[attr-defined]  # its stub leaves it out
    try:
        return record_type.FromString(body)
    except Exception as error:  # the implementations of protobuf raise different types
        raise ValueError("no record") from error


def staging_folder() -> Path:
    """The folder of W&B's copies of the files that it will upload."""
    return Path(import_module("wandb.sdk.artifacts.staging").get_staging_dir()).resolve()


def report_model(report: Any) -> Any:
    """The pydantic model that wandb-workspaces sends for a report; it has no public function for this."""
    return report._to_model()  # noqa: SLF001  # no public name, see above
