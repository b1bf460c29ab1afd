"""A bare PyTorch loop: all images are one tensor, a batch is an index, and nothing waits for a number."""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F
from peer import BATCH, EVAL_BATCH, arguments, digits, report
from torch_networks import make, sgd

folder, network, epochs = arguments()
torch.set_num_threads(1)
torch.manual_seed(0)
images, labels = map(torch.from_numpy, digits(folder, "train"))
test_images, test_labels = map(torch.from_numpy, digits(folder, "t10k"))
images, test_images = images.unsqueeze(1), test_images.unsqueeze(1)
model = make(network)
optimizer = sgd(model)

results = []
for _ in range(epochs):
    began = time.perf_counter()
    loss_sum = torch.zeros(())
    for index in torch.randperm(len(labels)).split(BATCH):
        loss = F.cross_entropy(model(images[index]), labels[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss_sum += loss.detach() * len(index)
    train_loss = loss_sum.item() / len(labels)
    seconds = time.perf_counter() - began

    with torch.no_grad():
        predicted = torch.cat([model(part).argmax(dim=1) for part in test_images.split(EVAL_BATCH)])
    accuracy = (predicted == test_labels).float().mean().item()
    results.append({"train_seconds": seconds, "train_loss": train_loss, "test_accuracy": accuracy})
report(results)
