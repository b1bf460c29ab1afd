"""Parameter groups for weight decay, and Muon combined with AdamW."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


def parameter_groups(model: nn.Module, *, decay_all: bool = False) -> list[dict[str, Any]]:
    """Parameters in two groups: weight matrices and kernels with weight decay, all others without.

    Biases, the scale and shift of normalisation and other parameters with fewer than two dimensions have little
    capacity; their decay only shifts activations (He et al. 2019, section 3.1).

    Args:
        decay_all: put all parameters into one group with weight decay.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if decay_all:
        return [{"params": parameters}]
    matrices = [parameter for parameter in parameters if parameter.ndim >= 2]
    vectors = [parameter for parameter in parameters if parameter.ndim < 2]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


class MuonWithAdamW(torch.optim.Optimizer):
    """``torch.optim.Muon`` for matrices, ``torch.optim.AdamW`` for everything else, as one optimizer.

    Muon orthogonalises the momentum of a weight matrix (Jordan et al. 2024); its step is scaled to the root mean
    square of AdamW's (Liu et al. 2025, equation 4), so both use one learning rate. Convolution kernels, which have four
    dimensions, are updated by AdamW.

    Args:
        params: as for any optimizer.
        lr: learning rate of both.
        momentum: of Muon.
        betas: of AdamW.
        weight_decay: of both, decoupled; a group's own value has priority.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        matrices: list[dict[str, Any]] = []
        others: list[dict[str, Any]] = []
        for group in self.param_groups:
            for chosen, wanted in ((matrices, True), (others, False)):
                if own := [parameter for parameter in group["params"] if (parameter.ndim == 2) is wanted]:
                    chosen.append({"params": own, "lr": group["lr"], "weight_decay": group["weight_decay"]})
        self._parts: list[torch.optim.Optimizer] = []
        if matrices:
            self._parts.append(torch.optim.Muon(matrices, momentum=momentum, adjust_lr_fn="match_rms_adamw"))
        if others:
            self._parts.append(torch.optim.AdamW(others, betas=(betas[0], betas[1])))
        # The same dictionaries as in the parts, so that a scheduler changes their learning rates too.
        self.param_groups = [group for part in self._parts for group in part.param_groups]

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """Take one step with both optimizers; ``closure`` is called once, before the step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self._parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self._parts for group in part.param_groups]
