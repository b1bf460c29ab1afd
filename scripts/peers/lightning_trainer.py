"""Lightning as its users write it: a module, DataLoaders with torchvision's transforms, a Trainer with its defaults.

So there are a progress bar, a log and a checkpoint, as with mnist-train. A callback takes the times.
"""

from __future__ import annotations

import tempfile
import time

import lightning
import torch
import torch.nn.functional as F
from peer import BATCH, EVAL_BATCH, MEAN, STD, arguments, report
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch_networks import make, sgd
from torchmetrics.classification import MulticlassAccuracy
from torchvision import datasets, transforms


class Classifier(lightning.LightningModule):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.accuracy = MulticlassAccuracy(num_classes=10, average="micro")

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        images, labels = batch
        loss = F.cross_entropy(self(images), labels)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(labels))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        images, labels = batch
        self.accuracy(self(images), labels)
        self.log("test_accuracy", self.accuracy, on_step=False, on_epoch=True, prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return sgd(self.model)


class Times(lightning.Callback):
    """Each epoch's seconds from its begin to the first of its test images, and its results."""

    def __init__(self) -> None:
        self.results: list[dict[str, float]] = []

    def on_train_epoch_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self.began = time.perf_counter()

    def on_validation_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.results.append({"train_seconds": time.perf_counter() - self.began})

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        for name in ("train_loss", "test_accuracy"):
            self.results[-1][name] = trainer.callback_metrics[name].item()


def main() -> None:
    folder, network, epochs = arguments()
    torch.set_num_threads(1)
    lightning.seed_everything(0)
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((MEAN,), (STD,))])
    train_set = datasets.MNIST(str(folder), train=True, transform=transform)
    test_set = datasets.MNIST(str(folder), train=False, transform=transform)
    times = Times()
    with tempfile.TemporaryDirectory() as logs:
        trainer = lightning.Trainer(
            max_epochs=epochs, accelerator="cpu", devices=1, callbacks=[times], default_root_dir=logs
        )
        trainer.fit(
            Classifier(make(network)),
            DataLoader(train_set, batch_size=BATCH, shuffle=True),
            DataLoader(test_set, batch_size=EVAL_BATCH),
        )
    report(times.results)


if __name__ == "__main__":
    main()
