"""Shapes, gradients, determinism and checkpoints of MyNet, as mnist_exp.testing checks them."""

from mynet import MyNet

from mnist_exp.testing import NetworkTests


class TestMyNet(NetworkTests):
    def build(self) -> MyNet:
        return MyNet(width=4, dropout=0.5)
