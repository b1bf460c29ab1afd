"""scikit-learn's MLPClassifier; ``partial_fit`` is one epoch. The network with convolutions is not to be had there."""

from __future__ import annotations

import time

from peer import BATCH, MOMENTUM, RATE, arguments, digits, report
from sklearn.neural_network import MLPClassifier

folder, network, epochs = arguments()
images, labels = digits(folder, "train")
test_images, test_labels = digits(folder, "t10k")
images, test_images = images.reshape(len(images), -1), test_images.reshape(len(test_images), -1)
model = MLPClassifier(
    hidden_layer_sizes=(71, 71),
    solver="sgd",
    learning_rate_init=RATE,
    momentum=MOMENTUM,
    nesterovs_momentum=False,
    batch_size=BATCH,
    alpha=0,
    random_state=0,
)

results = []
for _ in range(epochs):
    began = time.perf_counter()
    model.partial_fit(images, labels, classes=range(10))
    seconds = time.perf_counter() - began
    accuracy = model.score(test_images, test_labels)
    results.append({"train_seconds": seconds, "train_loss": model.loss_, "test_accuracy": accuracy})
report(results)
