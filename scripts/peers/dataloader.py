"""A PyTorch loop as tutorials write it: torchvision's data set and transforms, a DataLoader, ``loss.item()`` at each step.

The DataLoader has no worker processes: there is one core, and they would share it.
"""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F
from peer import BATCH, EVAL_BATCH, MEAN, STD, arguments, report
from torch.utils.data import DataLoader
from torch_networks import make, sgd
from torchvision import datasets, transforms

folder, network, epochs = arguments()
torch.set_num_threads(1)
torch.manual_seed(0)
transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((MEAN,), (STD,))])
train_set = datasets.MNIST(str(folder), train=True, transform=transform)
test_set = datasets.MNIST(str(folder), train=False, transform=transform)
train_loader = DataLoader(train_set, batch_size=BATCH, shuffle=True)
test_loader = DataLoader(test_set, batch_size=EVAL_BATCH)
model = make(network)
optimizer = sgd(model)

results = []
for _ in range(epochs):
    began = time.perf_counter()
    model.train()
    loss_sum = 0.0
    for images, labels in train_loader:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        loss_sum += loss.item() * len(labels)
    seconds = time.perf_counter() - began

    model.eval()
    correct = 0
    with torch.no_grad():
        for images, labels in test_loader:
            correct += (model(images).argmax(dim=1) == labels).sum().item()
    results.append(
        {
            "train_seconds": seconds,
            "train_loss": loss_sum / len(train_set),
            "test_accuracy": correct / len(test_set),
        }
    )
report(results)
