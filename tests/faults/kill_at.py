"""``mnist-train`` that kills itself with SIGKILL just before its Nth change of a file below the working directory.

kill_at.py N ARGUMENTS...    N = 0: no kill; the number of changes is written to the file ``changes``
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

CHANGES = {"os.rename", "os.remove", "os.link", "os.mkdir", "os.rmdir"}
WRITING = os.O_WRONLY | os.O_RDWR


def main() -> None:
    """Count changes, and kill; counting starts before the command runs."""
    last, sys.argv[1:] = int(sys.argv[1]), sys.argv[2:]
    here, count = os.getcwd(), 0

    def before(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event not in CHANGES and not (event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING):
            return
        path = os.fsdecode(arguments[0]) if isinstance(arguments[0], str | bytes) else ""
        if not path or (os.path.isabs(path) and not path.startswith(here)):
            return
        count += 1
        if count == last:
            os.kill(os.getpid(), signal.SIGKILL)

    from mnist_exp.cli import train

    sys.addaudithook(before)
    sys.argv[0] = "mnist-train"
    try:
        train.main()
    finally:
        if not last:
            changes = count
            with open("changes", "w") as file:
                file.write(str(changes))


if __name__ == "__main__":
    main()
