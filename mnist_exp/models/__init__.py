"""The networks: plain ``nn.Module`` from images (N, channels, size, size) to logits (N, classes), each with a ``title``."""

from mnist_exp.models.lenet5 import LeNet5
from mnist_exp.models.lenet5_1998 import LeNet5_1998
from mnist_exp.models.mlp import MLP, width_for_budget
from mnist_exp.models.table import LayerRow, count_parameters, layer_table

__all__ = ["MLP", "LayerRow", "LeNet5", "LeNet5_1998", "count_parameters", "layer_table", "width_for_budget"]
