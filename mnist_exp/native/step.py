"""A whole training step in one call: gather, forward and backward pass, loss, and SGD, Adam or AdamW.

It changes the same values as PyTorch: parameters, their ``grad``, running statistics, the optimizer's state in PyTorch's
layout, the averaged weights. So checkpoints of both backends are alike.
"""

from __future__ import annotations

import ctypes
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from mnist_exp.native.network import NativeForward
from mnist_exp.torch_private import has_hooks, mark_as_stepped

KINDS: dict[type[Optimizer], int] = {SGD: 0, Adam: 1, AdamW: 2}  # as update.h
BUFFERS: dict[type[Optimizer], tuple[str, ...]] = {
    SGD: ("momentum_buffer",),
    Adam: ("exp_avg", "exp_avg_sq"),
    AdamW: ("exp_avg", "exp_avg_sq"),
}
REFUSED = (
    "maximize",
    "amsgrad",
    "differentiable",
    "capturable",
    "dampening",
)  # options of a parameter group that the kernels do not support


class WeightAverage(Protocol):
    """The part of ``training.ExponentialMovingAverage`` that a step needs."""

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
    """The step of a model that native kernels are attached to, on mean cross-entropy; None if the kernels cannot take it.

    They do not support hooks of the model, its parameters or the optimizer, a softmax after the logits, or frozen
    parameters.
    """
    forward = model.forward
    if not isinstance(forward, NativeForward) or not _is_plain(model, optimizer):
        return None
    own = NativeForward(model, forward.library)  # with its own call, because evaluation uses the other one
    own.prepare(model)
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if own.after is not None or trained != {id(parameter) for parameter in own.parameters}:
        return None
    return FusedStep(own, optimizer, average, label_smoothing, gradient_clipping)


def _is_plain(model: nn.Module, optimizer: Optimizer) -> bool:
    """Whether every parameter is trained and has no gaps in memory, and there are no hooks."""
    plain = all(parameter.requires_grad and _is_dense(parameter) for parameter in model.parameters())
    return plain and not has_hooks(model, optimizer)


def _is_dense(tensor: Tensor) -> bool:
    """Whether its elements fill memory without gaps, so that ``empty_like`` gives the same layout."""
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
        self._bound: object = None  # addresses and settings for which _bind was called
        self._state: object = None
        self._workspace = self._scratch = torch.empty(0)

    def __call__(self, images: Tensor, labels: Tensor, index: Tensor | None, loss_sum: Tensor, correct: Tensor) -> bool:
        """Take a step; returns False, without a change, if the kernels do not support the batch.

        Args:
            images: (N, C, S, S), float32: the batch, or with ``index`` all images.
            labels: (N,), int64, of the images.
            index: (n,), int64: the images of the batch; None: all.
            loss_sum: (), float32; the sum of the images' losses, in nats, is added to it.
            correct: (), int64; the number of images classified correctly is added to it.

        Raises:
            IndexError: an index or a label is out of range.
        """
        own = self._own
        count = len(labels) if index is None else len(index)
        if not (own.takes(images, count) and images.is_contiguous() and labels.is_contiguous()):
            return False
        if own.before is not None:
            if index is not None:
                images, labels, index = images.index_select(0, index), labels.index_select(0, index), None
            images = own.before(images)
        call = own.call
        call.index = None if index is None else index.data_ptr()
        call.labels, call.examples = labels.data_ptr(), len(labels)
        call.loss_sum, call.correct = loss_sum.data_ptr(), correct.data_ptr()
        masks = own.draw_masks(count)
        self._allocate(*own.set_call(images, count, masks, torch.get_num_threads()))
        groups = self._optimizer.param_groups
        state = self._optimizer.state  # another object after load_state_dict; kept, so that no new one gets its address
        bound = own.addresses, [group.get("momentum", 0) != 0 for group in groups]
        if self._bound != bound or self._state is not state:
            self._bind()
            self._bound, self._state = bound, state
        if own.parameters[0].grad is not self._gradients[0]:
            self._set_gradients()
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

    def _allocate(self, workspace: int, scratch: int) -> None:
        if len(self._workspace) < workspace or len(self._scratch) < scratch:
            self._workspace, self._scratch = torch.empty(workspace), torch.empty(scratch)
        self._own.call.workspace, self._own.call.scratch = self._workspace.data_ptr(), self._scratch.data_ptr()

    def _finish(self) -> None:
        """The optimizer's step and the average's update, if C does not do them."""
        if self._update is None:
            if self._clipping is not None:
                parameters = [parameter for group in self._optimizer.param_groups for parameter in group["params"]]
                nn.utils.clip_grad_norm_(parameters, self._clipping)
            self._optimizer.step()
        if self._average is not None and (self._update is None or not self._update.average_count):
            self._average.update()

    def _set_gradients(self) -> None:
        for parameter, gradient in zip(self._own.parameters, self._gradients, strict=True):
            parameter.grad = gradient

    def _bind(self) -> None:
        """Give C the addresses of gradients, parameters, states and averages."""
        own, optimizer = self._own, self._optimizer
        self._gradients = [torch.empty_like(parameter) for parameter in own.parameters]
        addresses = iter([gradient.data_ptr() for gradient in self._gradients])
        for layer in own.layers:
            layer.weight_gradient, layer.bias_gradient = next(addresses), next(addresses)
            if layer.norm:
                layer.gamma_gradient, layer.beta_gradient = next(addresses), next(addresses)
        self._set_gradients()
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
        mark_as_stepped(optimizer)

    def _parameter(self, parameter: Tensor, group: dict[str, Any], of_group: Group) -> Parameter:
        """The parameter with its state, which gets the parameter's layout, and is created if it does not exist."""
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
        """The tensors of the average; empty if a tensor and its average have different layouts."""
        average = self._average
        if average is None:
            return []
        pairs = list(zip(average.averages, average.values, strict=True))
        for ours, value in pairs:
            alike = ours.stride() == value.stride() and ours.dtype is value.dtype is torch.float32
            if not (alike and _is_dense(ours)):
                return []
        return [Average(value.numel(), ours.data_ptr(), value.data_ptr()) for ours, value in pairs]


def _read(fields: Group, group: dict[str, Any]) -> None:
    """Copy a parameter group's settings, which a schedule or a callback may have changed."""
    fields.lr, fields.decay = float(group["lr"]), float(group["weight_decay"])
    if "momentum" in group:
        fields.momentum, fields.nesterov = float(group["momentum"]), bool(group["nesterov"])
    else:
        fields.beta1, fields.beta2 = map(float, group["betas"])
        fields.eps = group["eps"]
