"""Your own training loop, with data and models of mnist_exp."""

import torch
import torch.nn.functional as F

from mnist_exp.data import mnist5k
from mnist_exp.models import LeNet5

torch.manual_seed(0)
dataset, model = mnist5k(), LeNet5()
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
for epoch in range(3):
    for batch in torch.randperm(len(dataset.train)).split(64):
        loss = F.cross_entropy(model(dataset.train.images[batch]), dataset.train.labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        correct = model(dataset.test.images).argmax(dim=1) == dataset.test.labels
    print(f"epoch {epoch + 1}: test accuracy {correct.float().mean():.1%}")
