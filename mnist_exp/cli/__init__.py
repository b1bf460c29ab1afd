"""The commands: each module reads its arguments and sets the exit status."""

from mnist_exp import torch_import

torch_import.OWN_PROCESS = True
