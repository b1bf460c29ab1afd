"""Nothing in float64 leaves the CPU: Apple's mps has no such type.

PyTorch's ``meta`` device, which computes shapes and no values, stands in for the accelerator.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mnist_exp.build import build_training
from mnist_exp.components import build_model
from mnist_exp.config import check
from mnist_exp.data import Dataset, Split
from mnist_exp.experiment import predictions
from mnist_exp.training import Distillation, fit, predict

ATEN = torch.ops.aten


class NoFloat64(TorchDispatchMode):
    """Refuses float64 on the ``meta`` device, as mps does, and answers with ones where values are read back."""

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        options = options or {}
        on_meta = any(isinstance(leaf, torch.Tensor) and leaf.is_meta for leaf in tree_leaves(arguments))
        if on_meta and function is ATEN._local_scalar_dense.default:
            return 1
        if on_meta and function.overloadpacket in {ATEN._to_copy, ATEN.to} and str(options.get("device")) == "cpu":
            return torch.ones(arguments[0].shape, dtype=options.get("dtype") or arguments[0].dtype)
        result = function(*arguments, **options)
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.is_meta and leaf.dtype == torch.float64:
                raise TypeError(f"{function}: the device has no float64")
        return result


@pytest.mark.parametrize("model", ["lenet5", "lenet5_1998", "mlp"])
def test_training_evaluation_and_predictions_need_no_float64_on_the_device(model: str, composed: Any) -> None:
    everything = "regularization=full" if model != "lenet5_1998" else "regularization=ema"
    tree = composed("data=mnist5k", f"model={model}", everything, "optimizer=adamw", "optimizer.fused=false",
                    "trainer.batch_size=8", "trainer.epochs=2", "regularization.gradient_clipping=1")  # fmt: skip
    config, device = check(tree), torch.device("meta")
    network = build_model(config)
    teacher = build_model(check({**tree, "seed": 1})).eval().to(device)
    split = Split(torch.zeros(24, 1, 28, 28), torch.arange(24) % 10).to(device)
    with NoFloat64():
        state, train_config = build_training(config, network.to(device), Dataset(split, split, split, 0.0), device)
        object.__setattr__(train_config, "distillation", Distillation([teacher], 0.5, 2.0))
        fit(state, Dataset(split, split, split, 0.0), train_config)
        logits = predict(state, split.images, train_config)
        arrays = predictions(logits, Dataset(split, split, split, 0.0))
    assert (logits.device.type, logits.dtype) == ("cpu", torch.float32)
    assert arrays["worst_images"].shape == (24, 28, 28)


def test_the_stand_in_refuses_float64() -> None:
    with NoFloat64(), pytest.raises(TypeError, match="no float64"):
        torch.zeros(2, device="meta").double()
