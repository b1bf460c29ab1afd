"""A replacement for the Weights & Biases server on the loopback interface, with the requests that an online run uses.

It answers
- POST /graphql: Viewer (the owner of the key), UpsertBucket (a run is created or changed), RunResumeStatus (the state of a
  run that continues) and CreateRunFiles (addresses for uploads), for reports ProjectInternalId, GetProjects and
  upsertView, for artifacts CreateArtifact, CreateArtifactFiles, CreateArtifactManifest and CommitArtifact, for sweeps UpsertSweep, SweepWithRuns, CreateAgent and Heartbeat (an agent asks for its next command); any
  other operation gets empty data, as from a server older than the client;
- PUT /upload/RUN/NAME: a file;
- POST /files/ENTITY/PROJECT/RUN/file_stream: history rows at their offset, the summary, and the exit code at the end;
- anything else: an empty object.
"""

from __future__ import annotations

import gzip
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

import yaml


@dataclass
class Run:
    """One run on the server."""

    id: str
    project: str
    name: str | None = None
    group: str | None = None
    sweep: str | None = None
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)  # without the entry of W&B itself
    lines: dict[int, str] = field(default_factory=dict)  # of the history, by offset, as JSON
    summary: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None
    notes: str | None = None
    job_type: str | None = None
    artifacts: dict[str, str] = field(default_factory=dict)  # the type of each committed artifact, by name
    files: dict[str, bytes] = field(default_factory=dict)
    resumed: int = 0  # how often it was continued

    @property
    def history(self) -> list[dict[str, Any]]:
        """Rows in order, as logged, including entries of W&B itself (``_step`` ...)."""
        return [json.loads(self.lines[offset]) for offset in sorted(self.lines)]


@dataclass
class Sweep:
    """A sweep; agents start its runs until it has ``run_cap`` of them."""

    name: str
    project: str
    config: dict[str, Any]
    run_ids: list[str] = field(default_factory=list)  # of the runs that agents were asked to start

    def next_run(self) -> dict[str, Any]:
        """The command that starts one more run.

        The n-th run takes the n-th of the values of every parameter; of a range it takes the point n tenths of its width above the
        minimum.
        """
        number = len(self.run_ids)
        self.run_ids.append(f"{self.name}-{number}")
        arguments = {}
        for key, choice in self.config["parameters"].items():
            if "values" in choice:
                value = choice["values"][number % len(choice["values"])]
            elif "value" in choice:
                value = choice["value"]
            else:
                value = choice["min"] + (choice["max"] - choice["min"]) * (number + 1) / 10
            arguments[key] = {"value": value}
        return {"type": "run", "run_id": self.run_ids[-1], "program": self.config.get("program"), "args": arguments}


class WandbServer:
    """Serves inside the ``with`` block, or until ``stop()``.

    Args:
        refuse_key: every API key is refused (401).
        silent: connections are accepted, requests are never answered.
        refuse_rows: history is always refused (404).
    """

    def __init__(self, *, refuse_key: bool = False, silent: bool = False, refuse_rows: bool = False) -> None:
        self.refuse_key = refuse_key
        self.silent = silent
        self.refuse_rows = refuse_rows
        self.delay = 0.0  # seconds before every answer
        self.runs_until_silent: int | None = None  # the outage begins when this many runs have begun
        self.sweeps: dict[str, Sweep] = {}
        self.runs: dict[str, Run] = {}
        self._types: dict[str, str] = {}  # of artifacts, by id
        self.reports: list[dict[str, Any]] = []  # as saved: displayName, spec (JSON) ...
        self.operations: list[str] = []  # names of the GraphQL operations, in order
        self.bodies: list[bytes] = []  # of all requests, decompressed
        self.stopped = threading.Event()
        self._http = _HttpServer(("127.0.0.1", 0), _Handler)
        self._http.stand_in = self
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self.environment = {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": "k" * 40}

    def __enter__(self) -> WandbServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop the server; the port is closed when this returns. May be called twice."""
        if not self.stopped.is_set():
            self.stopped.set()
            self._http.shutdown()
            self._http.server_close()
            self._thread.join()

    def graphql(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The ``data`` of the answer."""
        self.operations.append(operation)
        if operation == "UpsertBucket":
            return {"upsertBucket": self._upsert(variables)}
        if operation == "RunResumeStatus":
            return {"model": self._resume_status(variables)}
        if operation == "CreateRunFiles":
            run = variables["run"]
            files = [{"name": name, "uploadUrl": f"{self.url}/upload/{run}/{name}"} for name in variables["files"]]
            return {"createRunFiles": {"runID": run, "uploadHeaders": [], "files": files}}
        if "Artifact" in operation:
            return self._artifact(operation, variables)
        if operation == "UpsertSweep":
            return {"upsertSweep": self._upsert_sweep(variables)}
        if operation == "SweepWithRuns":
            sweep = self.sweeps.get(variables["sweep"])
            shown = sweep and {"id": sweep.name, "name": sweep.name, "state": "RUNNING", "runs": {"edges": []}}
            return {"project": {"sweep": shown and {**shown, "config": yaml.safe_dump(sweep.config)}}}
        if operation == "CreateAgent":
            return {"createAgent": {"agent": {"id": variables["sweep"]}}}
        if operation == "Heartbeat":
            return {"agentHeartbeat": {"agent": {"id": variables["id"]}, "commands": json.dumps(self._beat(variables))}}
        if operation in {"Viewer", "GetViewer", "GetDefaultEntity"}:
            edges = {"edges": []}
            user = {"id": "user", "username": _ENTITY["name"], "entity": _ENTITY["name"], "flags": "{}", "teams": edges}
            return {
                "viewer": {
                    **user,
                    "name": "Somebody",
                    "email": None,
                    "admin": False,
                    "deletedAt": None,
                    "apiKeys": edges,
                }
            }
        if operation == "ProjectInternalId":
            known = variables["projectName"] in self.projects()
            return {"project": {"id": "project", "internalId": "cHJvamVjdA=="} if known else None}
        if operation == "GetProjects":
            common = {
                "entityName": _ENTITY["name"],
                "createdAt": "2026-11-21T00:00:00Z",
                "isBenchmark": False,
                "user": None,
            }
            edges = [
                {"node": {"__typename": "Project", "id": name, "name": name, **common}} for name in self.projects()
            ]
            return {
                "models": {
                    "edges": edges,
                    "pageInfo": {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False},
                }
            }
        if operation == "upsertView":
            self.reports.append(variables)
            project = {"id": "project", "name": variables["projectName"], "entityName": variables["entityName"]}
            shown = {key: variables[key] for key in ("name", "displayName", "description", "type", "spec")}
            return {"upsertView": {"view": {"id": "Vmlldzox", "project": project, **shown}, "inserted": True}}
        return {}

    def _artifact(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        """An artifact has the id RUN:NAME; its files are those of the run, NAME/FILE."""
        if operation == "CreateArtifact":
            wanted = variables["input"]
            name = wanted["artifactCollectionName"]
            self._types[id_ := f"{wanted['runName']}:{name}"] = wanted["artifactTypeName"]
            sequence = {"id": "sequence", "latestArtifact": None}
            return {"createArtifact": {"artifact": {"id": id_, "state": "PENDING", "artifactSequence": sequence}}}
        if operation == "CreateArtifactFiles":
            nodes = [
                self._artifact_file(file["artifactID"], file["name"]) for file in variables["input"]["artifactFiles"]
            ]
            return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}
        if operation == "CreateArtifactManifest":
            file = self._artifact_file(variables["artifactID"], variables["name"])
            return {"createArtifactManifest": {"artifactManifest": {"id": "manifest", "file": file}}}
        if operation == "CommitArtifact":
            run, _, name = variables["artifactID"].partition(":")
            self.runs[run].artifacts[name] = self._types[variables["artifactID"]]
            return {"commitArtifact": {"artifact": {"id": variables["artifactID"], "digest": "0"}}}
        if operation == "ArtifactType":
            return {"project": {"artifact": None}}
        return {}

    def _artifact_file(self, artifact: str, name: str) -> dict[str, Any]:
        url = f"{self.url}/upload/{artifact.replace(':', '/')}/{name}"
        shown = {
            "id": name,
            "name": name,
            "displayName": name,
            "storagePath": name,
            "uploadUrl": url,
            "uploadHeaders": [],
        }
        return {**shown, "uploadMultipartUrls": None, "artifact": {"id": artifact}}

    def projects(self) -> list[str]:
        """Names of the projects that runs were logged to."""
        return sorted({run.project for run in self.runs.values()})

    def _upsert_sweep(self, variables: dict[str, Any]) -> dict[str, Any]:
        name = f"sweep{len(self.sweeps)}"
        self.sweeps[name] = Sweep(name, variables["projectName"], yaml.safe_load(variables["config"]))
        project = {"id": "project", "name": variables["projectName"], "entity": _ENTITY}
        return {"sweep": {"name": name, "project": project}, "configValidationWarnings": []}

    def _beat(self, variables: dict[str, Any]) -> list[dict[str, Any]]:
        """The next commands of an agent: one run at a time, and then exit."""
        sweep = self.sweeps[variables["id"]]
        if json.loads(variables["runState"]):
            return []
        if len(sweep.run_ids) == sweep.config.get("run_cap"):
            return [{"type": "exit"}]
        return [sweep.next_run()]

    def _upsert(self, variables: dict[str, Any]) -> dict[str, Any]:
        inserted = variables["name"] not in self.runs
        run = self.runs.setdefault(variables["name"], Run(variables["name"], variables["project"]))
        if inserted and len(self.runs) == self.runs_until_silent:
            self.silent = True  # from the next request on
        run.name = variables["displayName"] or run.name
        run.group = variables["groupName"] or run.group
        run.sweep = variables["sweep"] or run.sweep
        run.tags = variables["tags"] or run.tags
        run.notes, run.job_type = variables["notes"] or run.notes, variables["jobType"] or run.job_type
        config = json.loads(variables["config"] or "{}")
        run.config.update({key: entry["value"] for key, entry in config.items() if key != "_wandb"})
        return {"bucket": self._bucket(run), "inserted": inserted}

    def _resume_status(self, variables: dict[str, Any]) -> dict[str, Any] | None:
        run = self.runs.get(variables["name"])
        if run is None:
            return None
        run.resumed += 1
        return {"id": "project", "name": run.project, "entity": _ENTITY, "bucket": self._bucket(run)}

    def _bucket(self, run: Run) -> dict[str, Any]:
        tail = [run.lines[max(run.lines)]] if run.lines else []
        return {
            "id": run.id,
            "name": run.id,
            "displayName": run.name,
            "config": json.dumps({key: {"value": value} for key, value in run.config.items()}),
            "project": {"id": "project", "name": run.project, "entity": _ENTITY},
            "summaryMetrics": json.dumps(run.summary),
            "historyLineCount": len(run.lines),
            "historyTail": json.dumps(tail),
            "eventsLineCount": 0,
            "eventsTail": "[]",
            "logLineCount": 0,
            "tags": run.tags,
            "wandbConfig": '{"t": 1}',
        }

    def stream(self, run_id: str, message: dict[str, Any]) -> None:
        """Store one message of the file stream."""
        run = self.runs[run_id]
        files = message.get("files") or {}
        history = files.get("wandb-history.jsonl", {"offset": 0, "content": []})
        run.lines.update(enumerate(history["content"], start=history["offset"]))
        for line in files.get("wandb-summary.json", {"content": []})["content"]:
            run.summary = json.loads(line)
        if message.get("complete"):
            run.exit_code = message["exitcode"]


_ENTITY = {"id": "entity", "name": "somebody"}


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True
    stand_in: WandbServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that close the connection."""


class _Handler(BaseHTTPRequestHandler):
    server: _HttpServer

    def _answer(self) -> None:
        stand_in = self.server.stand_in
        body = self._body()
        stand_in.bodies.append(body)
        stand_in.stopped.wait(None if stand_in.silent else stand_in.delay)
        if stand_in.stopped.is_set():
            return
        if stand_in.refuse_key:
            self._send(401, {"errors": [{"message": "invalid API key"}]})
        elif self.path == "/graphql":
            request = json.loads(body)
            # Some clients name the operation only in the query.
            named = re.search(r"(?:query|mutation)\s+(\w+)", request["query"])
            operation = request.get("operationName") or (named[1] if named else "")
            self._send(200, {"data": stand_in.graphql(operation, request.get("variables") or {})})
        elif match := re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path):
            if not stand_in.refuse_rows:
                stand_in.stream(match[1], json.loads(body))
            self._send(404 if stand_in.refuse_rows else 200, {})
        else:
            if match := re.fullmatch(r"/upload/([^/]+)/(.+)", self.path):
                stand_in.runs[match[1]].files[match[2]] = body
            self._send(200, {})

    do_GET = do_POST = do_PUT = _answer

    def _body(self) -> bytes:
        body = b""
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _send(self, status: int, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None: ...
