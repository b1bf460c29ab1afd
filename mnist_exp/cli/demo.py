"""A web page on which the user draws a digit, and trained networks classify it.

    mnist-demo outputs/sweeps/mlp_width outputs/2026-11-21/lenet5-a1b2c3

Only this machine can open it.
"""

from __future__ import annotations

from collections.abc import Sequence

from mnist_exp.cli.arguments import ArgumentParser, add_trust
from mnist_exp.cli.ending import exit_status, printing
from mnist_exp.demo import Demo, load_networks


def main(arguments: Sequence[str] | None = None) -> None:
    """``mnist-demo``: runs until it is interrupted; exit status 2 without a network."""
    parser = ArgumentParser(
        prog="mnist-demo", example="mnist-demo DIR", description="Draw a digit; trained networks classify it."
    )
    parser.add_argument("directories", nargs="+", metavar="DIR", help="run directories, folders of them, or patterns")
    parser.add_argument("--port", type=int, default=8000, help="default: 8000; 0: any free one")
    add_trust(parser)
    options = parser.parse(arguments)
    with exit_status("mnist-demo"):
        networks = load_networks(options.directories, options.trust)
        with Demo(networks, options.port) as server:
            with printing():
                print(f"{len(networks)} networks at {server.url} (Ctrl+C ends it)")
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                print()


if __name__ == "__main__":
    main()
