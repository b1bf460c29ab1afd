"""The loss: cross-entropy, mixup, distillation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Objective:
    """Mean cross-entropy per image, in nats.

    Attributes:
        label_smoothing: probability mass taken from the label and spread evenly over all classes
            (Szegedy et al. 2016, section 7).
        rubbish_logit: a constant logit of an eleventh class to which no image belongs. With logits that are minus the
            penalties of radial basis functions this is the MAP criterion of LeCun et al. 1998, equation 9.
    """

    label_smoothing: float = 0.0
    rubbish_logit: float | None = None

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss of logits (N, C), floating point, for labels (N,), int64: a scalar."""
        if self.rubbish_logit is None:
            return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        rubbish = logits.new_full((logits.shape[0], 1), self.rubbish_logit)
        log_probabilities = F.log_softmax(torch.cat([logits, rubbish], dim=1), dim=1)[:, :-1]
        of_label = F.nll_loss(log_probabilities, labels)
        return (1 - self.label_smoothing) * of_label - self.label_smoothing * log_probabilities.mean()

    def without_smoothing(self) -> Objective:
        """The loss to report: comparable between runs with and without label smoothing."""
        return Objective(rubbish_logit=self.rubbish_logit)


@dataclass(frozen=True)
class Mixup:
    """Convex combinations of pairs of training images and of their losses (Zhang et al. 2018, equation 1).

    Attributes:
        alpha: parameter of Beta(alpha, alpha), from which one weight is drawn for each batch.
    """

    alpha: float

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, float]:
        """Mix images (N, C, S, S) with a permutation of themselves.

        Returns:
            mixed images, their first labels, their second labels, and the weight of the first, at least one half.
        """
        concentration = torch.tensor([self.alpha, self.alpha])
        # Drawn on the CPU, where conversion to a Python number needs no synchronisation.
        weight = float(torch.distributions.Dirichlet(concentration).sample().max())
        partner = torch.randperm(len(images)).to(images.device, non_blocking=True)
        return torch.lerp(images[partner], images, weight), labels, labels[partner], weight


@dataclass(frozen=True)
class Distillation:
    """Training on the labels and on the outputs of trained networks (Hinton et al. 2015, section 2).

    Attributes:
        teachers: networks in evaluation mode, on the device of the batch; the target is the mean of their probabilities.
        weight: of the teachers' loss, from 0 to 1; the labels' loss has weight 1 - ``weight``.
        temperature: divisor of all logits; above 1 small probabilities have more effect.
    """

    teachers: Sequence[nn.Module]
    weight: float
    temperature: float

    def __call__(self, of_labels: Tensor, logits: Tensor, images: Tensor) -> Tensor:
        """The whole loss, a scalar.

        Args:
            of_labels: the loss on the labels, a scalar.
            logits: (N, C), floating point, of the network being trained.
            images: (N, C, S, S), the input of that network.
        """
        with torch.no_grad():
            targets = [F.softmax(teacher(images).float() / self.temperature, dim=1) for teacher in self.teachers]
            target = torch.stack(targets).mean(dim=0)
        # Times the temperature squared, so that the size of gradients does not depend on it.
        of_teachers = F.cross_entropy(logits / self.temperature, target) * self.temperature**2
        return torch.lerp(of_labels, of_teachers, self.weight)
