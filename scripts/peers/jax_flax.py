"""JAX with flax and optax: the digits are arrays on the device, and one program is compiled for a step, or for an epoch.

The fourth argument says which: ``step`` calls a compiled step for each batch, ``scan`` runs the whole epoch as one
program. Shapes are fixed, so what is left of the images behind the last whole batch (32 of 60,000) is left out.
"""

from __future__ import annotations

import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from peer import BATCH, EVAL_BATCH, MOMENTUM, RATE, arguments, digits, report


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.reshape(len(x), -1)
        for width in (71, 71):
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(10)(x)


class LeNet5(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.max_pool(nn.relu(nn.Conv(6, (5, 5), padding=2)(x)), (2, 2), strides=(2, 2))
        x = nn.max_pool(nn.relu(nn.Conv(16, (5, 5), padding="VALID")(x)), (2, 2), strides=(2, 2))
        x = x.reshape(len(x), -1)
        for width in (120, 84):
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(10)(x)


folder, network, epochs = arguments()
program = sys.argv[4]
images, labels = map(jnp.asarray, digits(folder, "train"))
test_images, test_labels = digits(folder, "t10k")
images, test_images = images[..., None], test_images[..., None]
model = {"lenet5": LeNet5, "mlp": MLP}[network]()
optimizer = optax.sgd(RATE, momentum=MOMENTUM)
parameters = jax.jit(model.init)(jax.random.key(0), images[:1])
state = parameters, optimizer.init(parameters)


def step(state, images, labels, index):
    """State after a batch, and the batch's mean loss."""
    parameters, moments = state

    def loss_of(parameters):
        logits = model.apply(parameters, images[index])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels[index]).mean()

    loss, gradients = jax.value_and_grad(loss_of)(parameters)
    updates, moments = optimizer.update(gradients, moments)
    return (optax.apply_updates(parameters, updates), moments), loss


def epoch(state, images, labels, order):
    """State after an epoch, and the mean loss of each of its batches."""
    return jax.lax.scan(lambda state, index: step(state, images, labels, index), state, order)


def predict(parameters, images):
    return model.apply(parameters, images).argmax(axis=1)


batches = len(labels) // BATCH
order = np.zeros((batches, BATCH), np.int32)
began = time.perf_counter()
if program == "scan":
    train = jax.jit(epoch, donate_argnums=0).lower(state, images, labels, order).compile()
else:
    train = jax.jit(step, donate_argnums=0).lower(state, images, labels, order[0]).compile()
classify = jax.jit(predict).lower(parameters, test_images[:EVAL_BATCH]).compile()
compile_seconds = time.perf_counter() - began

random = np.random.default_rng(0)
results = []
for _ in range(epochs):
    began = time.perf_counter()
    order = random.permutation(len(labels))[: batches * BATCH].reshape(batches, BATCH).astype(np.int32)
    if program == "scan":
        state, losses = train(state, images, labels, order)
    else:
        losses = []
        for index in order:
            state, loss = train(state, images, labels, index)
            losses.append(loss)
    train_loss = float(np.mean(jax.device_get(losses)))  # waits until all is computed
    seconds = time.perf_counter() - began

    parts = [test_images[start : start + EVAL_BATCH] for start in range(0, len(test_images), EVAL_BATCH)]
    predicted = np.concatenate([classify(state[0], part) for part in parts])
    accuracy = float((predicted == test_labels).mean())
    results.append({"train_seconds": seconds, "train_loss": train_loss, "test_accuracy": accuracy})
report(results, compile_seconds)
