"""The digest of the weights of small trainings, for each platform and backend: tests/reference_weights.json.

python tests/reference_weights.py      # add the digests of this platform, or replace them

A platform is everything that the bits of a result depend on. If the digest of a platform changes, an operation or its order
has changed, or a random number. Replace it only if you changed that on purpose.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
import tempfile
from pathlib import Path

import torch

import mnist_exp
from mnist_exp.native.build import NativeUnavailable, compiler_version
from mnist_exp.training import load_checkpoint

FILE = Path(__file__).with_suffix(".json")
COMMAND = "python tests/reference_weights.py"
# Environment variables that make PyTorch's libraries choose other instructions.
CHOOSING = ("ATEN_CPU_CAPABILITY", "DNNL_MAX_CPU_ISA", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA")
SMALL = (
    *("data=mnist5k", "data.limit=256", "trainer.epochs=2", "trainer.batch_size=32", "trainer.threads=1"),
    *("trainer.device=cpu", "logger=none", "quiet=true", "seed=1"),
)
NETWORKS = {
    "lenet5": ("model=lenet5", "optimizer=adamw", "regularization=augment", "regularization.dropout=0.2"),
    "mlp": ("model=mlp", "scheduler=cosine", "regularization.label_smoothing=0.1"),
}
BACKENDS = ("torch", "native")


def platform_of(backend: str) -> dict[str, str]:
    """Everything that the bits of a training with one thread depend on.

    Raises:
        NativeUnavailable: the backend is ``native``, and there is no compiler.
    """
    found = {
        "backend": backend,
        "system": f"{platform.system()} {platform.machine()}",
        "libc": " ".join(platform.libc_ver()).strip(),
        "processor": _processor(),
        "torch": f"{torch.__version__}, {torch.backends.cpu.get_cpu_capability()}",
    }
    return found | ({"compiler": compiler_version()} if backend == "native" else {})


def _processor() -> str:
    """The kind of processor: its name, and a digest of what it can do."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.processor()} {platform.release()}"
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
    name = " ".join(fields.get(key, "") for key in ("vendor_id", "cpu family", "model", "cache size", "CPU part"))
    able = hashlib.sha256(" ".join(sorted(fields.get("flags", fields.get("Features", "")).split())).encode())
    return f"{' '.join(name.split())}, {able.hexdigest()[:8]}"


def digest(network: str, backend: str, folder: Path) -> str:
    """Train the network in ``folder``; the digest of its weights, in the order of their names."""
    run = mnist_exp.train(*SMALL, *NETWORKS[network], f"trainer.backend={backend}", directory=folder)
    assert run.record.backend == backend, run.record.backend
    weights = load_checkpoint(run.path / "checkpoints" / "last.pt", torch.device("cpu"))["model"]
    content = hashlib.sha256()
    for name in sorted(weights):
        content.update(name.encode() + weights[name].numpy().tobytes())
    return content.hexdigest()[:16]


def known() -> list[dict[str, dict[str, str]]]:
    """For each platform: ``platform``, and ``digests`` by network."""
    found: list[dict[str, dict[str, str]]] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def main() -> None:
    entries = known()
    for backend in BACKENDS:
        try:
            own = platform_of(backend)
        except NativeUnavailable as error:
            print(f"{backend} is left out: {error}", file=sys.stderr)
            continue
        with tempfile.TemporaryDirectory() as folder:
            digests = {network: digest(network, backend, Path(folder) / network) for network in NETWORKS}
        entries = [entry for entry in entries if entry["platform"] != own] + [{"platform": own, "digests": digests}]
        print(f"{backend}: {digests}")
    FILE.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
