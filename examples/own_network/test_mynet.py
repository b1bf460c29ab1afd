"""The tests of mnist_exp.testing for MyNet: shapes, gradients, determinism and checkpoints."""

from mynet import MyNet

from mnist_exp.testing import NetworkTests


class TestMyNet(NetworkTests):
    def build(self) -> MyNet:
        return MyNet(width=4, dropout=0.5)
