"""Train, sweep and compare LeNet-5 variants and MLPs on MNIST."""

__version__ = "0.1.0"
