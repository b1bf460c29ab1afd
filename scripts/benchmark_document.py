"""docs/speed.md: its two figures and its tables, from docs/results alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from benchmark_common import NETWORKS
from benchmark_peers import CANDIDATES, middle, table
from campaign import FIGURES, RESULTS, ROOT, read_csv, write_between_markers

DOCUMENT = ROOT / "docs" / "speed.md"
PEERS_FIGURE, GROWTH_FIGURE = FIGURES / "speed.png", FIGURES / "speed_growth.png"
Rows = Sequence[dict[str, str]]
BACKENDS = {"torch": "PyTorch", "native": "native"}
COLOURS = {"native": "tab:blue", "torch": "tab:orange"}
# Multiplications of an image's forward pass, layer by layer, and whether only the maximum of each 2x2 outputs is kept.
PRODUCTS = {
    "lenet5": ((6 * 28 * 28 * 25, True), (16 * 10 * 10 * 6 * 25, True), (400 * 120, False), (120 * 84, False), (840, False)),
    "mlp": ((784 * 71, False), (71 * 71, False), (71 * 10, False)),
}  # fmt: skip


def flops(network: str, images: int, *, at_maxima_only: bool = False) -> float:
    """Additions and multiplications of training: forward pass, gradients of weights, gradients of all inputs but the images.

    Args:
        at_maxima_only: without products of the backward pass with what is zero: the gradient of three of the four
            outputs of a convolution under each 2x2 maximum.
    """
    products = 0.0
    for number, (forward, pooled) in enumerate(PRODUCTS[network]):
        backward = forward * (1 if number == 0 else 2)
        products += forward + backward / (4 if pooled and at_maxima_only else 1)
    return 2 * images * products


def limits(growth: Rows, network: str, images: int) -> dict[str, float]:
    """Seconds that the machine needs at least for an epoch, by what limits it."""
    speed = {row["x"]: float(row["value"]) for row in growth if row["kind"] == "floor"}
    found = {"all products at the speed of sgemm": flops(network, images) / speed["product"] / 1e9}
    if any(pooled for _, pooled in PRODUCTS[network]):
        found["backward at maxima only"] = flops(network, images, at_maxima_only=True) / speed["product"] / 1e9
    found["images at the speed of memory"] = 4 * 784 * images / speed["copy"] / 1e9
    return found


def write() -> None:
    """Tables between the markers of the document, and the figures."""
    peers, growth = (read_csv(RESULTS / f"speed_{name}.csv") for name in ("peers", "growth"))
    machines = {row["measured"]: row for row in read_csv(RESULTS / "speed_machine.csv")}
    if peers and growth:
        write_between_markers(DOCUMENT, "peers", about_peers(peers, growth, machines["peers"]))
        draw_peers(peers, growth)
    if growth:
        write_between_markers(DOCUMENT, "parts", about_parts(growth, machines["growth"]))
        write_between_markers(DOCUMENT, "growth", about_growth(growth))
        draw_growth(growth)


def machine(of: dict[str, str]) -> str:
    return (
        f"{of['processor']}, {of['cores']} cores, PyTorch {of['torch']}, {of['date']}, load average {of['load_before']} "
        f"before and {of['load_after']} after"
    )


def about_peers(peers: Rows, growth: Rows, of: dict[str, str]) -> Iterator[str]:
    images = int(peers[0]["images"])
    turns = len({row["turn"] for row in peers})
    versions = sorted({part for row in peers for part in row["versions"].replace(" ", "=").split("=")[::2]})
    numbers = dict(pair for row in peers for pair in zip(*[iter(row["versions"].split())] * 2, strict=True))
    yield f"{machine(of)}; {images:,} images, {'one turn' if turns == 1 else f'medians of {turns} turns'};"
    yield f"{', '.join(f'{name} {numbers[name]}' for name in versions)}."
    for network in NETWORKS:
        yield ""
        yield from table(peers, network, {})
    yield ""
    speed = {row["x"]: row for row in growth if row["kind"] == "floor"}
    yield (
        f"What this core can do: multiply matrices of 384 x 384 at {float(speed['product']['value']):.0f} GFLOP/s "
        f"(`torch.mm`), copy memory at {float(speed['copy']['value']):.0f} GB/s (read and written); the fastest of "
        f"{speed['product']['n']}. At these speeds an epoch would take:"
    )
    yield ""
    yield "| seconds | products | backward pass at the maxima only | reading the images once |"
    yield "|---|---:|---:|---:|"
    for network, title in NETWORKS.items():
        every, *winners, memory = limits(growth, network, images).values()
        yield f"| {title} | {every:.3f} | {f'{winners[0]:.3f}' if winners else '-'} | {memory:.3f} |"


def draw_peers(peers: Rows, growth: Rows) -> None:
    """A bar for each candidate's second epoch and a mark for its whole process; lines where the machine's limits are."""
    figure = new_figure((10.5, 4.8))
    for axes, (network, title) in zip(figure.subplots(1, 2), NETWORKS.items(), strict=True):
        mine = {name: [r for r in peers if (r["network"], r["candidate"]) == (network, name)] for name in CANDIDATES}
        names = [name for name, rows in mine.items() if rows][::-1]
        seconds = [middle(mine[name], "second_epoch_seconds") for name in names]
        colours = ["tab:blue" if name.startswith("mnist-train") else "tab:grey" for name in names]
        bars = axes.barh(names, seconds, color=colours, height=0.62)
        axes.bar_label(
            bars, [f"{value:.2g}" if value < 10 else f"{value:.0f}" for value in seconds], padding=3, fontsize=8
        )
        whole = [middle(mine[name], "whole_seconds") for name in names]
        axes.plot(whole, names, "D", color="black", markersize=4, label="whole process, one epoch")
        styles = ("-", "--", ":")
        for (what, value), style in zip(limits(growth, network, int(peers[0]["images"])).items(), styles, strict=False):
            label = f"{what}: {value:.2g} s"
            axes.axvline(value, color="tab:red", linewidth=1, linestyle=":" if "memory" in what else style, label=label)
        axes.set_xscale("log")
        axes.set_xlim(left=min(limits(growth, network, int(peers[0]["images"])).values()) / 1.6, right=2.2 * max(whole))
        axes.set_xlabel(f"bar: second epoch of {int(peers[0]['images']):,} images, s")
        axes.set_title(title, fontsize=11)
        axes.grid(alpha=0.3, axis="x")
        axes.set_axisbelow(True)
        axes.legend(fontsize=7.5, loc="upper center", bbox_to_anchor=(0.42, -0.14), ncols=1, frameon=False)
    figure.savefig(PEERS_FIGURE, dpi=110)


def about_parts(growth: Rows, of: dict[str, str]) -> Iterator[str]:
    parts = [row for row in growth if row["kind"] == "part"]
    yield f"{machine(of)}; batch 64, one thread, medians, n = {parts[0]['n']}."
    yield ""
    yield "| microseconds | LeNet-5, PyTorch | LeNet-5, native | MLP, PyTorch | MLP, native |"
    yield "|---|---:|---:|---:|---:|"
    found = {(row["x"], row["network"], row["backend"]): float(row["value"]) for row in parts}
    names = [name for name in dict.fromkeys(row["x"] for row in parts) if name != "whole step"]
    for name in (*names, "whole step"):
        cells = [found.get((name, network, backend)) for network in NETWORKS for backend in BACKENDS]
        yield f"| {name} | {' | '.join('-' if cell is None else str(round(cell)) for cell in cells)} |"


KINDS = {
    "batch": "images of a batch",
    "width": "width",
    "threads": "threads, batch 256",
    "data": "training images",
    "runs": "runs of a sweep",
}


def about_growth(growth: Rows) -> Iterator[str]:
    """A table for each way to grow: what is measured, by network and backend, or by the way a sweep is run."""
    for kind, title in KINDS.items():
        rows = [row for row in growth if row["kind"] == kind]
        columns = list(dict.fromkeys((row["network"], row["backend"]) for row in rows))
        found = {(row["network"], row["backend"], row["x"]): float(row["value"]) for row in rows}
        for network in dict.fromkeys(network for network, _ in columns):
            ways = [way for of, way in columns if of == network]
            xs = list(dict.fromkeys(row["x"] for row in rows if row["network"] == network))
            unit = rows[0]["unit"]
            what = f"{NETWORKS[network] if kind != 'width' or network == 'lenet5' else 'MLP'}, {title}"
            if (kind, network) == ("width", "lenet5"):
                what = "LeNet-5, all widths times"
            last = "ratio" if kind == "runs" else "times as fast"
            yield f"| {what} | {' | '.join(f'{BACKENDS.get(way, way)}, {unit}' for way in ways)} | {last} |"
            yield f"|---:|{'---:|' * (len(ways) + 1)}"
            for x in xs:
                values = [found[network, way, x] for way in ways]
                cells = " | ".join(f"{value:,.0f}" if unit == "µs" else f"{value:.2f}" for value in values)
                yield f"| {float(x):,g} | {cells} | {values[0] / values[1]:.2f} |"
            yield ""
    yield f"n = {', '.join(f'{n} ({what})' for what, n in counts(growth).items())}."


def counts(growth: Rows) -> dict[str, str]:
    steps, wholes = (next(row["n"] for row in growth if row["kind"] == kind) for kind in ("batch", "data"))
    return {"steps": steps, "whole processes": wholes}


def draw_growth(growth: Rows) -> None:
    """A panel for each way to grow."""
    figure = new_figure((11, 6.4))
    *panels, last = figure.subplots(2, 3).flat
    for axes, (kind, title) in zip(panels, KINDS.items(), strict=True):
        rows = [row for row in growth if row["kind"] == kind]
        for network, backend in dict.fromkeys((row["network"], row["backend"]) for row in rows):
            line = [row for row in rows if (row["network"], row["backend"]) == (network, backend)]
            of_width = kind == "width" and network == "lenet5"
            x = [float(row["x"]) * (71 if of_width else 1) for row in line]
            axes.plot(
                *(x, [float(row["value"]) for row in line], "o-" if network == "lenet5" else "s--"),
                markersize=4,
                color=COLOURS.get(backend, "tab:green" if backend == "one process" else "tab:purple"),
                label=f"{NETWORKS[network]}, {BACKENDS.get(backend, backend)}",
            )
        axes.set_yscale("log")
        axes.set_xscale("log", base=2 if kind in {"threads", "runs"} else 10)
        xs = {float(row["x"]) for row in rows if kind != "width" or row["network"] == "mlp"}
        axes.set_xticks(sorted(xs), minor=False)
        axes.set_xticks([], minor=True)
        axes.xaxis.set_major_formatter("{x:,g}" if kind != "data" else "{x:,.0f}")
        axes.yaxis.set_minor_formatter("{x:,g}" if kind in {"data", "runs"} else "")
        axes.yaxis.set_major_formatter("{x:,g}")
        axes.set_xlabel("width of the MLP; LeNet-5's widths times 71" if kind == "width" else title)
        axes.set_ylabel("µs a step" if rows[0]["unit"] == "µs" else "s, whole process")
        axes.grid(alpha=0.3)
        if kind == "runs":
            axes.legend(fontsize=7.5)
    last.axis("off")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    last.legend(handles, labels, loc="center", frameon=False)
    figure.savefig(GROWTH_FIGURE, dpi=110)


def new_figure(size: tuple[float, float]) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure
