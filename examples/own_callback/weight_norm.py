"""Your own callback: the norm of the weights after every epoch.

cd examples/own_callback
mnist-train data=mnist5k +callbacks.norm._target_=weight_norm.WeightNorm
"""

from collections.abc import Mapping
from typing import Any

import torch

from mnist_exp.training import Callback


class WeightNorm(Callback):
    """Records ``weight_norm``, the L2 norm of all trainable parameters, at the end of every ``every``-th epoch.

    Args:
        every: epochs between two measurements.
    """

    def __init__(self, every: int = 1) -> None:
        if every < 1:
            raise ValueError(f"every={every} should be at least 1")
        self.every = every

    def epoch_metrics(self, state: Any, dataset: Any) -> Mapping[str, float]:
        if state.epoch % self.every:
            return {}
        weights = [parameter.detach().flatten() for parameter in state.evaluated_model.parameters()]
        return {"weight_norm": float(torch.cat(weights).norm())}
