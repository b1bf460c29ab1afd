"""Tests that every network should pass. Inherit from ``NetworkTests`` to check your own network::

    from mnist_exp.testing import NetworkTests
    from my_package import MyNet

    class TestMyNet(NetworkTests):
        def build(self) -> MyNet:
            return MyNet(width=32)

pytest finds the inherited tests; pytest itself is not needed to import this module.
"""

from __future__ import annotations

import copy
import io
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class NetworkTests:
    """Shapes, gradients, determinism and checkpoints of the network that ``build`` returns.

    Attributes:
        image_shape: channels, height and width of an image.
        num_classes: number of logits.
    """

    image_shape: ClassVar[tuple[int, int, int]] = (1, 28, 28)
    num_classes: ClassVar[int] = 10

    def build(self) -> nn.Module:
        """A new network with random weights."""
        raise NotImplementedError("write build(), which returns your network")

    def images(self, count: int, seed: int = 0) -> Tensor:
        """Random images (count, *image_shape), float32, with mean 0 and standard deviation 1, as normalised images have."""
        return torch.randn(count, *self.image_shape, generator=torch.Generator().manual_seed(seed))

    def labels(self, count: int, seed: int = 0) -> Tensor:
        """Random labels (count,), int64."""
        return torch.randint(self.num_classes, (count,), generator=torch.Generator().manual_seed(seed))

    def seeded(self, seed: int = 0) -> nn.Module:
        """The network with weights from ``seed``, as ``mnist-train`` builds it."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.build()

    def test_shape_of_the_logits(self) -> None:
        model = self.seeded().eval()
        for count in (1, 2, 5):
            logits = model(self.images(count))
            assert logits.shape == (count, self.num_classes), f"{tuple(logits.shape)} for {count} images"
            assert logits.dtype == torch.float32
            assert torch.isfinite(logits).all()

    def test_images_of_a_batch_do_not_mix_in_evaluation(self) -> None:
        model, images = self.seeded().eval(), self.images(4)
        with torch.no_grad():
            alone = torch.cat([model(image[None]) for image in images])
            torch.testing.assert_close(model(images), alone, rtol=1e-4, atol=1e-5)

    def test_every_parameter_gets_a_gradient(self) -> None:
        model = self.seeded().train()
        F.cross_entropy(model(self.images(8)), self.labels(8)).backward()  # type: ignore[no-untyped-call]  # PyTorch gives it no types
        without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert not without, f"no gradient reaches {', '.join(without)}"
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)

    def test_a_few_steps_lower_the_loss(self) -> None:
        model = self.seeded().train()
        images, labels = self.images(16), self.labels(16)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        losses = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for _ in range(30):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(images), labels)
                loss.backward()  # type: ignore[no-untyped-call]  # PyTorch gives it no types
                optimizer.step()
                losses.append(loss.item())
        assert sum(losses[-5:]) < sum(losses[:5]), f"loss went from {losses[0]:.4f} to {losses[-1]:.4f}"

    def test_the_seed_decides_the_weights(self) -> None:
        first, second, other = (self.seeded(seed).state_dict() for seed in (0, 0, 1))
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert any(not torch.equal(first[name], other[name]) for name in first)

    def test_evaluation_is_deterministic_and_changes_nothing(self) -> None:
        model, images = self.seeded().eval(), self.images(3)
        before = copy.deepcopy(model.state_dict())
        with torch.no_grad():
            first, second = model(images), model(images)
        assert torch.equal(first, second)
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())

    def test_a_checkpoint_restores_the_network(self) -> None:
        model = self.seeded().eval()
        file = io.BytesIO()
        torch.save(model.state_dict(), file)
        file.seek(0)
        other = self.seeded(1)
        other.load_state_dict(torch.load(file, weights_only=True))
        with torch.no_grad():
            assert torch.equal(other.eval()(self.images(3)), model(self.images(3)))
