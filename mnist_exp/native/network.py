"""A model's forward and backward pass in the native kernels, behind one autograd function.

The model keeps its modules and parameters; only its ``forward`` is replaced, so loss, optimizer, averages and
checkpoints do not change.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mnist_exp.native.build import load
from mnist_exp.native.structure import structure

CHUNK = 64  # images of a thread at a time, without gradients


class Layer(ctypes.Structure):
    """As in shards.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("inputs", "outputs")),
        *((name, ctypes.c_void_p) for name in ("weight", "bias")),
        ("strides", ctypes.c_int64 * 4),
        *((name, ctypes.c_void_p) for name in ("weight_gradient", "bias_gradient", "mask")),
        *((name, ctypes.c_int64) for name in ("norm", "batch")),
        *((name, ctypes.c_double) for name in ("momentum", "eps")),
        *((name, ctypes.c_void_p) for name in ("gamma", "beta", "gamma_gradient", "beta_gradient")),
        *((name, ctypes.c_void_p) for name in ("running_mean", "running_variance")),
    )


class Call(ctypes.Structure):
    """As in shards.h."""

    _fields_ = (
        ("count", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("layers", "images", "logits", "workspace", "scratch")),
        *((name, ctypes.c_int64) for name in ("n", "shards", "from_step", "to_step")),
        *((name, ctypes.c_void_p) for name in ("index", "labels")),
        ("examples", ctypes.c_int64),
        ("smoothing", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("loss_sum", "correct", "update")),
    )


class NativeForward:
    """Replaces a model's ``forward``: images (N, C, S, S), float32, to logits (N, C), float32.

    Inputs without a kernel (other types, other devices, gradients of images, autocast) go to the model's own ``forward``.
    A deep copy of the model gets its own ``NativeForward``.

    Raises:
        NativeUnavailable: the kernels do not cover the model or cannot be built here.
    """

    def __init__(self, model: nn.Module, library: ctypes.CDLL | None = None) -> None:
        self._model = weakref.ref(model)
        self.library = library or load(structure(model).constants)
        self._ready = False
        self._lock = threading.Lock()  # C reads the fields of self.call: one call at a time

    def __deepcopy__(self, memo: dict[int, Any]) -> NativeForward:
        # The copy's modules do not exist yet, so they are read at its first call.
        return NativeForward(memo[id(self._model())], self.library)

    def __call__(self, images: Tensor) -> Tensor:
        model = self._model()
        assert model is not None  # it holds this object
        if not self._ready:
            self.prepare(model)
        if not self.takes(images, len(images)):
            logits: Tensor = type(model).forward(model, images)
            return logits
        images = (images if self.before is None else self.before(images)).contiguous()
        if torch.is_grad_enabled() and self._trained:
            logits = Network.apply(self, images, *self.parameters)
        else:
            logits = self._infer(images)
        return logits if self.after is None else self.after(logits)

    def prepare(self, model: nn.Module) -> None:
        found = structure(model)
        self.parts, self.before, self.after = found.parts, found.before, found.after
        self.norms = [part.norm for part in found.parts if part.norm is not None]
        self._shape = found.image_shape
        self.parameters = tuple(parameter for part in found.parts for parameter in part.parameters())
        self._trained = any(parameter.requires_grad for parameter in self.parameters)
        self._shapes = [parameter.shape for parameter in self.parameters]
        self.addresses: list[int] = []
        self._floats: dict[tuple[int, int, bool], tuple[int, int]] = {}
        self.layers = (Layer * len(found.parts))()
        self.call = Call(len(found.parts), ctypes.addressof(self.layers))
        self.reference = ctypes.addressof(self.call)
        self._ready = True

    def takes(self, images: Tensor, count: int) -> bool:
        """Whether the kernels support a batch of ``count`` of these images."""
        return (
            images.dtype is torch.float32
            and images.device.type == "cpu"
            and images.shape[1:] == self._shape
            and count > 0
            and not images.requires_grad
            and not torch.is_autocast_enabled("cpu")
            # PyTorch decides whether a single image has batch statistics, or raises its error.
            and not (count == 1 and any(norm.training for norm in self.norms))
        )

    def _check_parameters(self) -> None:
        """Check parameters before C gets their addresses, and again after an address has changed.

        Raises:
            TypeError: a parameter has another shape, type, device or layout than the kernels need.
        """
        addresses = [parameter.data_ptr() for parameter in self.parameters]
        if addresses == self.addresses:
            return
        for parameter, shape in zip(self.parameters, self._shapes, strict=True):
            if parameter.shape != shape:
                raise TypeError(f"native kernels were made for a parameter of shape {tuple(shape)}")
            if parameter.dtype is not torch.float32 or parameter.device.type != "cpu":
                raise TypeError(f"native kernels take float32 on the CPU, not {parameter.dtype} on {parameter.device}")
            if parameter.ndim < 4 and not parameter.is_contiguous():
                raise TypeError("native kernels take contiguous parameters of linear layers and norms")
        for layer, part in zip(self.layers, self.parts, strict=True):
            weight, bias, *scales = part.parameters()
            layer.inputs, layer.outputs = weight.shape[1], weight.shape[0]
            layer.weight, layer.bias = weight.data_ptr(), bias.data_ptr()
            if weight.ndim == 4:
                layer.strides = (ctypes.c_int64 * 4)(*weight.stride())
            if scales:
                layer.norm, (layer.gamma, layer.beta) = part.position, (scale.data_ptr() for scale in scales)
        self.addresses = addresses

    def draw_masks(self, count: int) -> list[Tensor | None]:
        """The dropout mask of each layer's input, drawn like ``nn.Dropout`` does; None without dropout."""
        masks: list[Tensor | None] = []
        for part in self.parts:
            if part.dropout is None or not part.dropout.training:
                masks.append(None)
            else:
                kept = 1 - part.dropout.p
                masks.append(torch.empty(count, part.module.weight.shape[1]).bernoulli_(kept).div_(kept))
        return masks

    def set_norms(self) -> None:
        for layer, part in zip(self.layers, self.parts, strict=True):
            norm = part.norm
            if norm is None:
                continue
            mean, variance, counter = norm.running_mean, norm.running_var, norm.num_batches_tracked
            assert mean is not None
            assert variance is not None
            assert counter is not None
            layer.batch, layer.momentum, layer.eps = int(norm.training), norm.momentum or 0.0, norm.eps
            layer.running_mean, layer.running_variance = mean.data_ptr(), variance.data_ptr()
            if norm.training:
                counter.add_(1)

    def set_call(self, images: Tensor, count: int, masks: list[Tensor | None], shards: int) -> tuple[int, int]:
        """Set the fields of a call; returns the sizes of workspace and scratch in floats."""
        self._check_parameters()
        call = self.call
        call.n, call.shards, call.images = count, shards, images.data_ptr()
        for layer, mask in zip(self.layers, masks, strict=True):
            layer.mask = None if mask is None else mask.data_ptr()
        key = (count, shards, masks[0] is None)
        if key not in self._floats:
            library, reference = self.library, self.reference
            self._floats[key] = library.workspace_floats(reference), library.scratch_floats(reference)
        return self._floats[key]

    def forward(self, images: Tensor, masks: list[Tensor | None]) -> tuple[Tensor, Tensor]:
        """Logits (N, C) and the workspace that the backward pass needs."""
        with self._lock:
            size, _ = self.set_call(images, len(images), masks, torch.get_num_threads())
            if self.norms:
                self.set_norms()
            workspace = torch.empty(size)
            logits = torch.empty(len(images), self.layers[-1].outputs)
            self.call.workspace, self.call.logits = workspace.data_ptr(), logits.data_ptr()
            self.library.forward(self.reference)
        return logits, workspace

    def backward(
        self,
        images: Tensor,
        masks: list[Tensor | None],
        batch: list[int],
        workspace: Tensor,
        shards: int,
        gradient: Tensor,
    ) -> list[Tensor]:
        """Gradients of the parameters, in their order and layout."""
        gradients = [torch.empty_like(parameter) for parameter in self.parameters]
        addresses = iter([tensor.data_ptr() for tensor in gradients])
        with self._lock:
            _, size = self.set_call(images, len(images), masks, shards)
            for layer, of_batch in zip(self.layers, batch, strict=True):
                layer.weight_gradient, layer.bias_gradient = next(addresses), next(addresses)
                if layer.norm:
                    layer.gamma_gradient, layer.beta_gradient = next(addresses), next(addresses)
                    layer.batch = of_batch
            scratch, call = torch.empty(size), self.call
            call.workspace, call.scratch, call.logits = workspace.data_ptr(), scratch.data_ptr(), gradient.data_ptr()
            self.library.backward(self.reference)
        return gradients

    def _infer(self, images: Tensor) -> Tensor:
        masks = self.draw_masks(len(images))
        chunk = CHUNK * torch.get_num_threads()
        if len(images) <= chunk or any(norm.training for norm in self.norms):
            return self.forward(images, masks)[0]
        parts = [
            self.forward(images[at : at + chunk], [None if mask is None else mask[at : at + chunk] for mask in masks])[
                0
            ]
            for at in range(0, len(images), chunk)
        ]
        return torch.cat(parts)


class Network(torch.autograd.Function):
    """Logits from images and the parameters of ``native``."""

    @staticmethod
    def forward(ctx: Any, native: NativeForward, images: Tensor, *parameters: Tensor) -> Tensor:
        masks = native.draw_masks(len(images))
        logits, workspace = native.forward(images, masks)
        ctx.native, ctx.masks, ctx.workspace, ctx.shards = native, masks, workspace, torch.get_num_threads()
        ctx.batch = [int(part.norm is not None and part.norm.training) for part in native.parts]
        ctx.save_for_backward(images, *parameters)  # autograd then detects a change in place before the backward pass
        return logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, *_ = ctx.saved_tensors
        native: NativeForward = ctx.native
        return (
            None,
            None,
            *native.backward(images, ctx.masks, ctx.batch, ctx.workspace, ctx.shards, gradient.contiguous()),
        )


def attach(model: nn.Module) -> None:
    """Use the native kernels for the forward and backward pass of ``model``, a ``LeNet5`` or ``MLP`` on the CPU.

    Raises:
        NotCovered: there are no kernels for a part of it.
        NativeUnavailable: the kernels cannot be built here.
    """
    model.forward = NativeForward(model)


def attached(model: nn.Module) -> bool:
    """Whether the native kernels are attached to ``model``."""
    return isinstance(model.forward, NativeForward)
