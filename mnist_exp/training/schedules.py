"""PyTorch's learning-rate schedules, configured in epochs and stepped once a batch."""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LRScheduler, OneCycleLR, StepLR


def constant(optimizer: Optimizer, *, epochs: int, steps_per_epoch: int) -> LRScheduler:
    """Keep the optimizer's learning rate."""
    return ConstantLR(optimizer, factor=1.0, total_iters=0)


def step_decay(optimizer: Optimizer, *, epochs: int, steps_per_epoch: int, every: int, gamma: float) -> LRScheduler:
    """Multiply the learning rate by ``gamma`` after every ``every`` epochs."""
    return StepLR(optimizer, step_size=every * steps_per_epoch, gamma=gamma)


def cosine(optimizer: Optimizer, *, epochs: int, steps_per_epoch: int, final: float) -> LRScheduler:
    """Half a cosine from the optimizer's learning rate to ``final`` (Loshchilov and Hutter 2017, equation 5)."""
    return CosineAnnealingLR(optimizer, T_max=epochs * steps_per_epoch, eta_min=final)


def one_cycle(
    optimizer: Optimizer,
    *,
    epochs: int,
    steps_per_epoch: int,
    warmup: float,
    start_factor: float,
    final_factor: float,
    anneal: str,
) -> LRScheduler:
    """Increase to the optimizer's learning rate, then decrease to almost zero (Smith and Topin 2018).

    Unlike in the paper, momentum is constant, because Muon and Adam have no equivalent of SGD's momentum.

    Args:
        warmup: fraction of all steps in which the learning rate increases.
        start_factor: first learning rate as a fraction of the highest.
        final_factor: last learning rate as a fraction of the first.
        anneal: ``cos`` or ``linear``.
    """
    return OneCycleLR(
        optimizer,
        max_lr=[group["lr"] for group in optimizer.param_groups],
        total_steps=epochs * steps_per_epoch,
        pct_start=warmup,
        div_factor=1 / start_factor,
        final_div_factor=1 / final_factor,
        anneal_strategy=anneal,  # type: ignore[arg-type]  # torch checks it and raises ValueError
        cycle_momentum=False,
    )
