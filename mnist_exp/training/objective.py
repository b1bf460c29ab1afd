"""What training minimises."""

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
        """The loss that is reported for test data: comparable between runs with and without label smoothing."""
        return Objective(rubbish_logit=self.rubbish_logit)


@dataclass(frozen=True)
class Mixup:
    """Convex combinations of pairs of training images and of their losses (Zhang et al. 2018, equation 1).

    Attributes:
        alpha: of Beta(alpha, alpha), from which one weight is drawn for each batch.
    """

    alpha: float

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, float]:
        """Mix images (N, C, S, S) with a permutation of themselves.

        Returns:
            mixed images, their first labels, their second labels, and the weight of the first, at least one half.
        """
        concentration = torch.tensor([self.alpha, self.alpha])
        # Drawn on the CPU: a Python number costs no synchronisation there.
        weight = float(torch.distributions.Dirichlet(concentration).sample().max())
        partner = torch.randperm(len(images)).to(images.device, non_blocking=True)
        return torch.lerp(images[partner], images, weight), labels, labels[partner], weight


@dataclass(frozen=True)
class Distillation:
    """Learning from what trained networks make of the same batch, too (Hinton et al. 2015, section 2).

    Attributes:
        teachers: networks in evaluation mode, on the device of the batch; the mean of their probabilities is learnt.
        weight: share of the teachers in the loss, the labels have the rest.
        temperature: by which all logits are divided; above 1 more of what the teachers find similar is seen.
    """

    teachers: Sequence[nn.Module]
    weight: float
    temperature: float

    def __call__(self, of_labels: Tensor, logits: Tensor, images: Tensor) -> Tensor:
        """The whole loss, a scalar.

        Args:
            of_labels: the loss that the labels give, a scalar.
            logits: of the network that learns, (N, C), floating point.
            images: as that network saw them, (N, C, S, S).
        """
        with torch.no_grad():
            shares = [F.softmax(teacher(images).float() / self.temperature, dim=1) for teacher in self.teachers]
            taught = torch.stack(shares).mean(dim=0)
        # Times the temperature squared, so that gradients keep their size whatever it is.
        of_teachers = F.cross_entropy(logits / self.temperature, taught) * self.temperature**2
        return torch.lerp(of_labels, of_teachers, self.weight)
