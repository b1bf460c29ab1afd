"""The training loop and its parts. It does not depend on Hydra, Weights & Biases or a console: it gets built objects and
calls callbacks."""

from mnist_exp.training.checkpoint import drop_previous, fitting, load_checkpoint, load_last_whole, save_checkpoint
from mnist_exp.training.ema import ExponentialMovingAverage
from mnist_exp.training.evaluation import evaluate, score
from mnist_exp.training.events import Callback, EpochMetrics, StepDone, TrainingEnded, TrainingStarted
from mnist_exp.training.loop import Diverged, Interrupted, fit, predict
from mnist_exp.training.objective import Distillation, Mixup, Objective
from mnist_exp.training.optimizers import MuonWithAdamW, parameter_groups
from mnist_exp.training.schedules import constant, cosine, one_cycle, step_decay
from mnist_exp.training.state import TrainConfig, TrainState

__all__ = [
    "Callback",
    "Distillation",
    "Diverged",
    "EpochMetrics",
    "ExponentialMovingAverage",
    "Interrupted",
    "Mixup",
    "MuonWithAdamW",
    "Objective",
    "StepDone",
    "TrainConfig",
    "TrainState",
    "TrainingEnded",
    "TrainingStarted",
    "constant",
    "cosine",
    "drop_previous",
    "evaluate",
    "fit",
    "fitting",
    "load_checkpoint",
    "load_last_whole",
    "one_cycle",
    "parameter_groups",
    "predict",
    "save_checkpoint",
    "score",
    "step_decay",
]
