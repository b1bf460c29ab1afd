"""A whole training step in one call: gather, forward and backward pass, loss, and where it is a common one, the optimizer.

What it changes is what PyTorch would change: parameters, their ``grad``, running statistics, the optimizer's state in
PyTorch's layout, the average's weights. So a checkpoint does not show who took a step.
"""

from __future__ import annotations

import ctypes
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from mnist_exp.native.network import NativeForward
from mnist_exp.torch_private import count_as_stepped, has_hooks

KINDS: dict[type[Optimizer], int] = {SGD: 0, Adam: 1, AdamW: 2}  # as update.h
BUFFERS: dict[type[Optimizer], tuple[str, ...]] = {
    SGD: ("momentum_buffer",),
    Adam: ("exp_avg", "exp_avg_sq"),
    AdamW: ("exp_avg", "exp_avg_sq"),
}
REFUSED = ("maximize", "amsgrad", "differentiable", "capturable", "dampening")  # of a group of parameters


class WeightAverage(Protocol):
    """``training.ExponentialMovingAverage``, as far as a step needs to know it."""

    @property
    def averages(self) -> list[Tensor]: ...
    @property
    def values(self) -> list[Tensor]: ...

    def advance(self) -> float: ...
    def update(self) -> None: ...


class Group(ctypes.Structure):
    """As in update.h."""

    _fields_ = (
        *((name, ctypes.c_double) for name in ("lr", "decay", "momentum", "beta1", "beta2", "eps")),
        ("nesterov", ctypes.c_int64),
    )


class Parameter(ctypes.Structure):
    """As in update.h."""

    _fields_ = (
        ("count", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("value", "gradient", "first", "second", "steps", "group")),
    )


class Average(ctypes.Structure):
    """As in update.h."""

    _fields_ = (("count", ctypes.c_int64), ("average", ctypes.c_void_p), ("value", ctypes.c_void_p))


class Update(ctypes.Structure):
    """As in update.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("kind", "parameter_count", "average_count")),
        *((name, ctypes.c_void_p) for name in ("parameters", "averages")),
        *((name, ctypes.c_double) for name in ("clip", "weight")),
    )


def fused_step(
    model: nn.Module,
    optimizer: Optimizer,
    average: WeightAverage | None = None,
    *,
    label_smoothing: float = 0.0,
    gradient_clipping: float | None = None,
) -> FusedStep | None:
    """The step of a model that native kernels are attached to, on mean cross entropy; None where PyTorch must take it.

    That is so where something would be left out: hooks of the model, its parameters or the optimizer, a softmax behind
    the logits, parameters that are not trained.
    """
    forward = model.forward
    if not isinstance(forward, NativeForward) or not _is_plain(model, optimizer):
        return None
    own = NativeForward(model, forward.library)  # with a call of its own, which evaluation does not touch
    own.prepare(model)
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if own.after is not None or trained != {id(parameter) for parameter in own.parameters}:
        return None
    return FusedStep(own, optimizer, average, label_smoothing, gradient_clipping)


def _is_plain(model: nn.Module, optimizer: Optimizer) -> bool:
    """Whether every parameter is trained and laid out plainly, and nobody waits for what happens within a step."""
    plain = all(parameter.requires_grad and _in_one_piece(parameter) for parameter in model.parameters())
    return plain and not has_hooks(model, optimizer)


def _in_one_piece(tensor: Tensor) -> bool:
    """Whether its elements fill memory without gaps, as those of whatever is made in its likeness do."""
    return tensor.is_contiguous() or (tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last))


class FusedStep:
    """See ``fused_step``."""

    def __init__(
        self,
        own: NativeForward,
        optimizer: Optimizer,
        average: WeightAverage | None,
        label_smoothing: float,
        gradient_clipping: float | None,
    ) -> None:
        self._own, self._optimizer, self._average = own, optimizer, average
        self._clipping = gradient_clipping
        own.call.smoothing = label_smoothing
        self._bound: object = None  # what the addresses below belong to
        self._state: object = None
        self._workspace = self._scratch = torch.empty(0)

    def __call__(self, images: Tensor, labels: Tensor, index: Tensor | None, loss_sum: Tensor, correct: Tensor) -> bool:
        """Take a step, unless PyTorch must take this one; returns whether it was taken.

        Args:
            images: (N, C, S, S), float32, the batch, or with ``index`` all images that it points to.
            labels: (N,), int64, of the images.
            index: (n,), int64, the batch.
            loss_sum: a float32 number to which the loss of the batch's images is added, in nats.
            correct: an int64 number to which the number of those classified correctly is added.

        Raises:
            IndexError: an index or a label is out of range.
        """
        own = self._own
        count = len(labels) if index is None else len(index)
        if not (own.takes(images, count) and images.is_contiguous() and labels.is_contiguous()):
            return False
        call = own.call
        call.index = None if index is None else index.data_ptr()
        call.labels, call.examples = labels.data_ptr(), len(labels)
        call.loss_sum, call.correct = loss_sum.data_ptr(), correct.data_ptr()
        masks = own.draw_masks(count)
        self._make_room(*own.set_call(images, count, masks, torch.get_num_threads()))
        groups = self._optimizer.param_groups
        state = self._optimizer.state  # another object after load_state_dict; held, so that no new one gets its address
        bound = own.addresses, [group.get("momentum", 0) != 0 for group in groups]
        if self._bound != bound or self._state is not state:
            self._bind()
            self._bound, self._state = bound, state
        if own.parameters[0].grad is not self._gradients[0]:
            self._show_gradients()
        if own.norms:
            own.set_norms()
        if self._update is not None:
            for fields, group in zip(self._groups, groups, strict=True):
                _read(fields, group)
            if self._update.average_count and self._average is not None:
                self._update.weight = self._average.advance()
        if own.library.train_step(own.reference):
            raise IndexError("the index of an image, or a label, is out of range")
        self._finish()
        return True

    def _make_room(self, workspace: int, scratch: int) -> None:
        if len(self._workspace) < workspace or len(self._scratch) < scratch:
            self._workspace, self._scratch = torch.empty(workspace), torch.empty(scratch)
        self._own.call.workspace, self._own.call.scratch = self._workspace.data_ptr(), self._scratch.data_ptr()

    def _finish(self) -> None:
        """What C has not done."""
        if self._update is None:
            if self._clipping is not None:
                parameters = [parameter for group in self._optimizer.param_groups for parameter in group["params"]]
                nn.utils.clip_grad_norm_(parameters, self._clipping)
            self._optimizer.step()
        if self._average is not None and (self._update is None or not self._update.average_count):
            self._average.update()

    def _show_gradients(self) -> None:
        for parameter, gradient in zip(self._own.parameters, self._gradients, strict=True):
            parameter.grad = gradient

    def _bind(self) -> None:
        """Tell C where everything lies."""
        own, optimizer = self._own, self._optimizer
        self._gradients = [torch.empty_like(parameter) for parameter in own.parameters]
        addresses = iter([gradient.data_ptr() for gradient in self._gradients])
        for layer in own.layers:
            layer.weight_gradient, layer.bias_gradient = next(addresses), next(addresses)
            if layer.norm:
                layer.gamma_gradient, layer.beta_gradient = next(addresses), next(addresses)
        self._show_gradients()
        kind, groups = KINDS.get(type(optimizer)), optimizer.param_groups
        self._update: Update | None = None
        own.call.update = None
        if kind is None or any(group.get(name) for group in groups for name in REFUSED):
            return
        self._groups = (Group * len(groups))()
        parameters = [
            self._parameter(parameter, group, fields)
            for group, fields in zip(groups, self._groups, strict=True)
            for parameter in group["params"]
        ]
        averages = self._averages()
        self._parameters = (Parameter * len(parameters))(*parameters)
        self._average_fields = (Average * len(averages))(*averages)
        self._update = Update(
            *(kind, len(parameters), len(averages)),
            *(ctypes.addressof(self._parameters), ctypes.addressof(self._average_fields)),
            self._clipping or 0.0,
        )
        own.call.update = ctypes.addressof(self._update)
        count_as_stepped(optimizer)

    def _parameter(self, parameter: Tensor, group: dict[str, Any], of_group: Group) -> Parameter:
        """The parameter with its state, which is made or laid out like it where that is not so yet."""
        fields = Parameter(parameter.numel(), parameter.data_ptr(), group=ctypes.addressof(of_group))
        assert parameter.grad is not None
        fields.gradient = parameter.grad.data_ptr()
        if group.get("momentum") == 0:
            return fields
        state, names = self._optimizer.state[parameter], BUFFERS[type(self._optimizer)]
        for name, field in zip(names, ("first", "second"), strict=False):
            buffer = state.get(name)
            if buffer is None:
                state[name] = torch.zeros_like(parameter)
            elif buffer.stride() != parameter.stride() or buffer.dtype is not torch.float32:
                state[name] = torch.empty_like(parameter).copy_(buffer)
            setattr(fields, field, state[name].data_ptr())
        if len(names) == 2:
            step = state.setdefault("step", torch.zeros((), dtype=torch.float32))
            if step.dtype is not torch.float32:
                state["step"] = step = step.float()
            fields.steps = step.data_ptr()
        return fields

    def _averages(self) -> list[Average]:
        """The tensors of the average, or none where they lie in memory in another way than what they follow."""
        average = self._average
        if average is None:
            return []
        pairs = list(zip(average.averages, average.values, strict=True))
        for ours, value in pairs:
            alike = ours.stride() == value.stride() and ours.dtype is value.dtype is torch.float32
            if not (alike and _in_one_piece(ours)):
                return []
        return [Average(value.numel(), ours.data_ptr(), value.data_ptr()) for ours, value in pairs]


def _read(fields: Group, group: dict[str, Any]) -> None:
    """What a schedule or a callback may have changed."""
    fields.lr, fields.decay = float(group["lr"]), float(group["weight_decay"])
    if "momentum" in group:
        fields.momentum, fields.nesterov = float(group["momentum"]), bool(group["nesterov"])
    else:
        fields.beta1, fields.beta2 = map(float, group["betas"])
        fields.eps = group["eps"]
