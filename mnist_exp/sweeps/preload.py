"""Imported by the server that forks the processes of jobs, so that these do not import PyTorch themselves."""

from mnist_exp import torch_import

torch_import.OWN_PROCESS = True
torch_import.import_torch(announced=False)

import mnist_exp.experiment  # noqa: E402, F401  # for the effect of its imports, which need PyTorch
