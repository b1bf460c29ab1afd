"""Runs commands in new processes that already have torch imported.

A server imports the modules that the commands import, and runs nothing. For each command it forks a child process, which
takes over the caller's arguments, environment, working directory, umask, signals and open files, and then executes the
installed script to its end, as Python would. The caller types the command by its name: ``bin`` holds a small program for
each command, which sends all this to the server, relays signals, and ends with the status of the child. One of them is
``python``, for scripts, ``-m`` and ``-c``. It is ``sys.executable`` of the children, so that the processes that they start,
such as the jobs of a launcher, come from the server too, except with ``ORDINARY_CHILDREN`` in the environment.

Similarities and differences between a child and a new process:

- ``tests/test_warm_commands.py`` compares the two. Nothing has run before: no configuration of Hydra, no resolver, no
  W&B service, no seed, no thread; standard streams, signal handlers and ``sys.argv`` are those of the script.
- Modules are already in ``sys.modules``, so a child cannot test which modules a command imports, and when. Therefore each
  kind of command also runs without the server (``tests/test_documented_lines.py``).
- Environment variables that Python or libraries read when they start cannot be taken over. If the caller's differ from
  those of the server, the command starts as an ordinary new process. ``PYTHONPATH`` may have a folder more that holds
  nothing but a ``sitecustomize.py``, which must be able to run after the imports.
- A child is in a process group of its own, so signals to a caller's group reach the caller alone, which relays them to its child
  and not to the child's children. Tests of Ctrl-C in several processes start ordinary ones.
- All children share one seed of Python's hashes, and ``/proc/PID/cmdline`` is the server's.
"""

from __future__ import annotations

import array
import atexit
import builtins
import fcntl
import gc
import importlib
import io
import marshal
import multiprocessing
import os
import runpy
import selectors
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import types
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

import mnist_exp

SUPPORTED = hasattr(os, "pidfd_open") and hasattr(socket, "SCM_RIGHTS")
# Read once, when Python or a library starts.
AT_START = ("PYTHON", "OMP_", "MKL_", "KMP_", "GOMP_", "OPENBLAS_", "TORCH", "LD_", "LC_", "LANG", "TZ", "COV")
# Modules that the commands import besides the package, and whose import has no other effects.
PRELOADED = (
    *("torch", "torch.utils.serialization.config", "numpy", "scipy.stats", "scipy.ndimage", "pandas", "PIL.ImageDraw"),
    *("PIL.BmpImagePlugin", "PIL.GifImagePlugin", "PIL.JpegImagePlugin", "PIL.PpmImagePlugin", "PIL.PngImagePlugin"),
    *("hydra", "omegaconf", "pydantic", "yaml", "rich.live", "rich.progress", "rich.table", "jinja2", "filelock"),
    *("hydra_plugins.hydra_joblib_launcher.joblib_launcher", "hydra_plugins.hydra_submitit_launcher.submitit_launcher"),
    *("hydra_plugins.hydra_ray_launcher.ray_launcher", "hydra_plugins.mnist_exp_sweeps", "antlr4.LL1Analyzer"),
    *("optuna", "joblib", "cloudpickle", "http.server", "submitit"),
    *("click", "google.protobuf.json_format", "platformdirs", "requests"),  # of W&B, which itself makes a folder
)
RELAYED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
HEADER = struct.Struct("!I")
STATUS = struct.Struct("!i")

CLIENT = """\
#!{python} -IS
import array, marshal, os, signal, socket, sys
arguments, script, unbuffered = sys.argv[1:], {script!r}, False
if not script:
    while arguments[:1] == ["-u"]:
        unbuffered = bool(arguments.pop(0))
    script = arguments.pop(0) if arguments else ""
    if script in ("-m", "-c") and arguments:
        script += arguments.pop(0)
def at_start(environment):
    return {{name: value for name, value in environment.items()
            if name.startswith({prefixes!r}) and name != "PYTHONPATH"}}
known = {path!r}
folders = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder and folder not in known]
if (
    at_start(os.environ) != at_start({environment!r})
    or not (os.path.isfile(script) or script[:2] in ("-m", "-c")) or script in {ordinary!r}
    or not known <= set(os.environ.get("PYTHONPATH", "").split(os.pathsep))
    or any(os.path.isdir(folder) and set(os.listdir(folder)) - {{"sitecustomize.py", "__pycache__"}} for folder in folders)
):  # this needs an ordinary new process
    path = {script!r} or {python!r}
    os.execv(path, [path, *sys.argv[1:]])
files = []
for number in sorted(int(name) for name in os.listdir("/proc/self/fd")):
    try:
        os.fstat(number)
        files.append(number)
    except OSError:  # of the list itself
        pass
request = marshal.dumps(dict(
    script=script, arguments=arguments, environment=dict(os.environ), directory=os.getcwd(), umask=os.umask(0),
    ignored=[int(number) for number in signal.valid_signals() if signal.getsignal(number) == signal.SIG_IGN],
    blocked=[int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])], files=files,
    unbuffered=unbuffered, folders=folders, python={warm_python!r},
))
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
server.sendmsg([len(request).to_bytes(4, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))])
server.sendall(request)
for number in {relayed!r}:
    if signal.getsignal(number) != signal.SIG_IGN:
        signal.signal(number, lambda number, frame: server.send(bytes([number])))
for number in files:
    if number > 2:
        os.close(number)  # the other end of a pipe must see when the child closes it
answer = server.recv(4)
status = int.from_bytes(answer, "big", signed=True) if answer else 70
if status < 0:
    signal.signal(-status, signal.SIG_DFL) if -status != signal.SIGKILL else None
    os.kill(os.getpid(), -status)
os._exit(status)
"""
ORDINARY = ("-msubmitit.local._local",)  # its process id, which its parent knows, names its files
FILES = 200  # open files that a caller may have; Linux sends at most 253 at once


class WarmCommands:
    """A server, and ``bin``, a folder of commands that it executes.

    Args:
        folder: of the server, whose commands several processes may share; its path must be short, because the path of a
            socket has at most 107 bytes.
        name: of ``bin``; no other process may use it.
        until: the server ends with this process, and removes the folder; it is started if it does not run yet.
    """

    def __init__(self, folder: Path, name: str, until: int) -> None:
        self.bin = folder / name
        self._environment = {key: value for key, value in os.environ.items() if key.startswith(AT_START)}
        self._address = str(folder / "socket")
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                folder.mkdir(parents=True)
                self._start(until)
        self.bin.mkdir()
        self.add("python", None)

    def _start(self, until: int) -> None:
        command = [sys.executable, __file__, self._address, str(until)]
        subprocess.run(command, stdin=subprocess.DEVNULL, start_new_session=True, cwd="/", check=True)

    def add(self, name: str, script: Path | None) -> Path:
        """A command of this name that executes ``script``; None: that is Python."""
        path = self.bin / name
        path.write_text(
            CLIENT.format(
                python=sys.executable,
                warm_python=str(self.bin / "python"),
                script=str(script or ""),
                prefixes=AT_START,
                ordinary=ORDINARY,
                environment=self._environment,
                path=set(filter(None, self._environment.get("PYTHONPATH", "").split(os.pathsep))),
                address=self._address,
                relayed=tuple(int(number) for number in RELAYED),
            )
        )
        path.chmod(0o755)
        return path


def serve(address: str, until: int) -> dict[str, Any]:
    """Fork a child for each request; returns in the child, with the request. The server ends with the process ``until``.

    The server itself is forked when it is ready, and its parent ends.
    """
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    if os.fork():
        os._exit(0)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    end = os.pidfd_open(until)
    selector.register(end, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj == end:
                folder = Path(address).parent
                shutil.rmtree(folder, ignore_errors=True)
                Path(f"{folder}.lock").unlink(missing_ok=True)
                for process in {other.data[0] for other in selector.get_map().values() if other.data}:
                    os.kill(process, signal.SIGKILL)
                os._exit(0)
            elif key.fileobj is listener:
                if request := _accept(listener, selector):
                    return request
            elif key.data[1].fileno() >= 0:  # else its end and a signal arrived together
                _attend(key, selector)


def _accept(listener: socket.socket, selector: selectors.BaseSelector) -> dict[str, Any] | None:
    """The next request, in a child that is forked for it; None in the server."""
    connection, _ = listener.accept()
    request = _receive(connection)
    if request is None:
        connection.close()
        return None
    process = os.fork()
    if process == 0:
        for key in selector.get_map().values():
            key.fileobj.close() if isinstance(key.fileobj, socket.socket) else os.close(int(key.fileobj))
        connection.close()
        selector.close()
        return request
    for descriptor in request["descriptors"]:
        os.close(descriptor)
    end = os.pidfd_open(process)
    selector.register(connection, selectors.EVENT_READ, (process, connection, end))
    selector.register(end, selectors.EVENT_READ, (process, connection, end))
    return None


def _attend(key: selectors.SelectorKey, selector: selectors.BaseSelector) -> None:
    """Send signals of a caller to its child, and the exit status of a child to its caller."""
    process, connection, end = key.data
    if key.fileobj is connection:
        signals = connection.recv(64)
        for number in signals or [signal.SIGKILL]:  # a killed caller sends nothing
            os.kill(process, number)
        if signals:
            return
    _, status = os.waitpid(process, 0)
    with suppress(OSError):  # nobody waits for it
        connection.sendall(STATUS.pack(os.waitstatus_to_exitcode(status)))
    selector.unregister(connection)
    selector.unregister(end)
    os.close(end)
    connection.close()


def _receive(connection: socket.socket) -> dict[str, Any] | None:
    size = array.array("i").itemsize
    header, ancillary, _, _ = connection.recvmsg(HEADER.size, socket.CMSG_SPACE(FILES * size))
    descriptors = array.array("i")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(content[: len(content) - len(content) % size])
    if len(header) < HEADER.size:
        return None
    (length,) = HEADER.unpack(header)
    content = b""
    while len(content) < length:
        part = connection.recv(length - len(content))
        if not part:
            return None
        content += part
    request: dict[str, Any] = marshal.loads(content)
    return {**request, "descriptors": list(descriptors)}


def take_over(request: dict[str, Any]) -> None:
    """Give this process the state of one started by the caller."""
    os.setpgid(0, 0)  # the caller relays the signals that a terminal sends to its group
    above = max([*request["descriptors"], *request["files"], 2]) + 1
    moved = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, above) for descriptor in request["descriptors"]]
    for number in {*request["descriptors"], *range(3)}:
        os.close(number)
    for descriptor, number in zip(moved, request["files"], strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(request["environment"])
    time.tzset()
    tempfile.tempdir = None
    os.chdir(request["directory"])
    os.umask(request["umask"])
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        ignored = signal.getsignal(number) == signal.SIG_IGN
        if number in request["ignored"] and not ignored:
            signal.signal(number, signal.SIG_IGN)
        elif ignored and number not in request["ignored"]:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, request["blocked"])
    _open_streams(request["files"], request["unbuffered"])
    import numpy as np
    import torch

    np.random.seed()  # Python's own generator does this by itself after a fork
    torch.seed()
    if "ORDINARY_CHILDREN" not in os.environ:
        sys.executable = request["python"]
        multiprocessing.set_executable(sys.executable)
    script, kind = request["script"], request["script"][:2]
    sys.argv = [kind if kind in {"-c", "-m"} else script, *request["arguments"]]
    sys.orig_argv = [sys.executable, *([kind, script[2:]] if kind in {"-c", "-m"} else [script]), *request["arguments"]]
    sys.path[0] = {"-c": "", "-m": os.getcwd()}.get(kind, os.path.dirname(os.path.realpath(script)))
    sys.path[1:1] = request["folders"]
    if request["folders"]:
        sys.modules.pop("sitecustomize", None)
        with suppress(ImportError):
            importlib.import_module("sitecustomize")


def _open_streams(files: list[int], unbuffered: bool) -> None:
    """Open standard streams as Python does at its start: line-buffered on a terminal, block-buffered elsewhere."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        old, stream = getattr(sys, f"__{name}__"), None
        if number in files:
            mode = "r" if name == "stdin" else "w"
            raw = io.FileIO(number, mode, closefd=False)
            raw.name = f"<{name}>"
            at_once = unbuffered or old.write_through  # PYTHONUNBUFFERED
            buffer = io.BufferedReader(raw) if name == "stdin" else raw if at_once else io.BufferedWriter(raw)
            by_line = not at_once and (raw.isatty() or name == "stderr")
            stream = io.TextIOWrapper(buffer, old.encoding, old.errors, line_buffering=by_line, write_through=at_once)
            stream.mode = mode
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def execute(script: str) -> int:
    """Run a script, ``-mMODULE`` or ``-cCODE`` as ``__main__``, and return the exit status that Python would return."""
    main = types.ModuleType("__main__")
    main.__builtins__ = builtins  # type: ignore[attr-defined]
    sys.modules["__main__"] = main
    try:
        if script.startswith("-m"):
            sys.modules.pop(script[2:], None)  # else runpy warns
            runpy.run_module(script[2:], run_name="__main__", alter_sys=True)
        elif script.startswith("-c"):
            exec(compile(script[2:], "<string>", "exec"), main.__dict__)
        else:
            main.__file__ = script = os.path.abspath(script)
            exec(compile(Path(script).read_bytes(), script, "exec"), main.__dict__)
    except SystemExit as leaving:
        if leaving.code is None or isinstance(leaving.code, int):
            return leaving.code or 0
        print(leaving.code, file=sys.stderr)
        return 1
    except BaseException as error:
        error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next  # without this function
        sys.excepthook(type(error), error, error.__traceback__)
        return -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    return 0


def leave(status: int) -> None:
    """End as Python ends, but without clearing all modules, which would copy the server's memory page by page."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with suppress(OSError):
                stream.flush()
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status & 0xFF)


if __name__ == "__main__":
    root = Path(mnist_exp.__file__).parent
    own = [".".join(path.relative_to(root.parent).with_suffix("").parts) for path in sorted(root.rglob("*.py"))]
    # A command's own modules change the process when they are imported.
    for name in (*(name for name in own if "__init__" not in name and ".cli." not in name), *PRELOADED):
        with suppress(ImportError):  # an extra that is not installed
            importlib.import_module(name)
    assert "mnist_exp.cli" not in sys.modules
    assert len(os.listdir("/proc/self/task")) == 1, "a thread would be lost in a fork"
    # Hundreds of the imported modules, which a child would call when it ends. There is no public list of them.
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]  # private, so not declared
        finalizer.atexit = False
    gc.collect()
    gc.freeze()  # otherwise the first collection in each child copies every page
    asked = serve(sys.argv[1], int(sys.argv[2]))
    take_over(asked)
    leave(execute(asked["script"]))
