"""A model's forward and backward pass in the native kernels, behind one autograd function.

The model keeps its modules and parameters; only its ``forward`` goes another way, so everything around it (loss,
optimizer, averages, checkpoints) is as with PyTorch alone.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mnist_exp.models import MLP, LeNet5
from mnist_exp.native.build import NativeUnavailable, load

ACTIVATIONS: dict[type[nn.Module], int] = {
    nn.ReLU: 0,
    nn.Tanh: 1,
    nn.Sigmoid: 2,
    nn.GELU: 3,
    nn.SiLU: 4,
}  # as vectors.h
MOST_LAYERS = 64  # as network.c
MOST_PIXELS = 64 * 64
CHUNK = 64  # images of a thread at a time where nothing is kept for a backward pass


class NotCovered(NativeUnavailable):
    """The kernels do not cover this network."""


class Layer(ctypes.Structure):
    """As in network.c."""

    _fields_ = (
        ("inputs", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("strides", ctypes.c_int64 * 4),
        ("weight_gradient", ctypes.c_void_p),
        ("bias_gradient", ctypes.c_void_p),
        ("mask", ctypes.c_void_p),
        ("norm", ctypes.c_int64),
        ("batch", ctypes.c_int64),
        ("momentum", ctypes.c_double),
        ("eps", ctypes.c_double),
        ("gamma", ctypes.c_void_p),
        ("beta", ctypes.c_void_p),
        ("gamma_gradient", ctypes.c_void_p),
        ("beta_gradient", ctypes.c_void_p),
        ("running_mean", ctypes.c_void_p),
        ("running_variance", ctypes.c_void_p),
    )


class Call(ctypes.Structure):
    """As in network.c."""

    _fields_ = (
        ("count", ctypes.c_int64),
        ("layers", ctypes.c_void_p),
        ("images", ctypes.c_void_p),
        ("logits", ctypes.c_void_p),
        ("workspace", ctypes.c_void_p),
        ("scratch", ctypes.c_void_p),
        ("n", ctypes.c_int64),
        ("shards", ctypes.c_int64),
        ("from_step", ctypes.c_int64),
        ("to_step", ctypes.c_int64),
    )


BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d


class Part(NamedTuple):
    """A layer with weights and what belongs to it."""

    module: nn.Conv2d | nn.Linear
    dropout: nn.Dropout | None  # in front of it
    norm: BatchNorm | None = None
    position: int = 0  # of the norm: 1 before the activation, 2 after it; as normalize.h

    def parameters(self) -> list[Tensor]:
        found = [self.module.weight, self.module.bias]
        if self.norm is not None:
            found += [self.norm.weight, self.norm.bias]
        return [parameter for parameter in found if parameter is not None]


class Structure(NamedTuple):
    """What the kernels need to know of a model."""

    constants: Mapping[str, int]  # macros of the source
    parts: tuple[Part, ...]
    image_shape: tuple[int, int, int]
    after: nn.Module | None  # what PyTorch does with the logits


def structure(model: nn.Module) -> Structure:
    """Read a model's modules.

    Raises:
        NotCovered: it is no LeNet5 or MLP, or has a part for which there is no kernel.
    """
    if type(model) not in {LeNet5, MLP}:
        raise NotCovered(f"there are no kernels for {type(model).__name__}")
    parts: list[Part] = []
    activations: set[type[nn.Module]] = set()
    activated = average = False
    waiting: nn.Dropout | None = None
    after: nn.Module | None = None
    for module in model.modules():
        match module:
            case nn.Conv2d() | nn.Linear():
                parts.append(Part(module, waiting))
                waiting, activated = None, False
            case nn.Dropout():
                waiting = module
            case nn.Softmax():
                after = module
            case nn.BatchNorm1d() | nn.BatchNorm2d():
                parts[-1] = parts[-1]._replace(norm=module, position=2 if activated else 1)
            case nn.AvgPool2d():
                average = True
            case _ if type(module) in ACTIVATIONS:
                activations.add(type(module))
                activated = True
    if len(parts) > MOST_LAYERS:
        raise NotCovered(f"there are kernels for {MOST_LAYERS} layers at most, and it has {len(parts)}")
    constants = {"ACTIVATION": ACTIVATIONS[activations.pop()] if activations else 0}
    assert isinstance(model, LeNet5 | MLP)
    image_size, first = model.image_size, parts[0].module
    if isinstance(first, nn.Conv2d):
        if model.in_channels != 1:
            raise NotCovered(
                f"there are kernels for convolutions of grey images only, and these have {model.in_channels} channels"
            )
        kernel, padding = int(first.kernel_size[0]), int(first.padding[0])
        if (image_size + 2 * padding) ** 2 > MOST_PIXELS:
            raise NotCovered(f"there are kernels for {MOST_PIXELS} pixels at most, padding included")
        maps1, maps2 = (part.module.weight.shape[0] for part in parts[:2])
        constants |= {"SIDE": image_size, "PADDING": padding, "KERNEL": kernel, "CHANNELS1": maps1, "CHANNELS2": maps2}
        constants |= {"DENSE": int(average or any(part.norm for part in parts[:2])), "AVERAGE": int(average)}
    return Structure(constants, tuple(parts), (model.in_channels, image_size, image_size), after)


class NativeForward:
    """Takes the place of a model's ``forward``: images (N, C, S, S), float32, to logits (N, C), float32.

    Whatever the kernels are not made for (other types, other devices, gradients of images, autocast) takes the model's
    own ``forward``. A deep copy of the model gets one of its own.

    Raises:
        NativeUnavailable: the kernels do not cover the model or cannot be had here.
    """

    def __init__(self, model: nn.Module, library: ctypes.CDLL | None = None) -> None:
        self._model = weakref.ref(model)
        self._library = library or load(structure(model).constants)
        self._ready = False

    def __deepcopy__(self, memo: dict[int, Any]) -> NativeForward:
        # The copy's modules do not exist yet: they are looked at when it is called first.
        return NativeForward(memo[id(self._model())], self._library)

    def __call__(self, images: Tensor) -> Tensor:
        model = self._model()
        assert model is not None  # it holds this object
        if not self._ready:
            self._prepare(model)
        if not self._takes(images):
            logits: Tensor = type(model).forward(model, images)
            return logits
        self._check_parameters()
        images = images.contiguous()
        if torch.is_grad_enabled() and self._trained:
            logits = Network.apply(self, images, *self._parameters)
        else:
            logits = self._infer(images)
        return logits if self._after is None else self._after(logits)

    def _prepare(self, model: nn.Module) -> None:
        found = structure(model)
        self._parts, self._after = found.parts, found.after
        self._norms = [part.norm for part in found.parts if part.norm is not None]
        self._shape = found.image_shape
        self._parameters = tuple(parameter for part in found.parts for parameter in part.parameters())
        self._trained = any(parameter.requires_grad for parameter in self._parameters)
        self._addresses: list[int] = []
        self._layers = (Layer * len(found.parts))()
        self._call = Call(len(found.parts), ctypes.addressof(self._layers))
        self._reference = ctypes.addressof(self._call)
        self._ready = True

    def _takes(self, images: Tensor) -> bool:
        return (
            images.dtype is torch.float32
            and images.device.type == "cpu"
            and images.shape[1:] == self._shape
            and len(images) > 0
            and not images.requires_grad
            and not torch.is_autocast_enabled("cpu")
            # Of a single image PyTorch takes no statistics, or says that there are none.
            and not (len(images) == 1 and any(norm.training for norm in self._norms))
        )

    def _check_parameters(self) -> None:
        """Before C gets an address: is there what it expects? Asked again when an address has changed."""
        addresses = [parameter.data_ptr() for parameter in self._parameters]
        if addresses == self._addresses:
            return
        for parameter in self._parameters:
            if parameter.dtype is not torch.float32 or parameter.device.type != "cpu":
                raise TypeError(f"native kernels take float32 on the CPU, not {parameter.dtype} on {parameter.device}")
            if parameter.ndim < 4 and not parameter.is_contiguous():
                raise TypeError("native kernels take contiguous parameters of linear layers and norms")
        for layer, part in zip(self._layers, self._parts, strict=True):
            weight, bias, *scales = part.parameters()
            layer.inputs, layer.outputs = weight.shape[1], weight.shape[0]
            layer.weight, layer.bias = weight.data_ptr(), bias.data_ptr()
            if weight.ndim == 4:
                layer.strides = (ctypes.c_int64 * 4)(*weight.stride())
            if scales:
                layer.norm, (layer.gamma, layer.beta) = part.position, (scale.data_ptr() for scale in scales)
        self._addresses = addresses

    def _draw_masks(self, count: int) -> list[Tensor | None]:
        """What dropout multiplies each layer's input by: the draws that ``nn.Dropout`` would make, in their order."""
        masks: list[Tensor | None] = []
        for part in self._parts:
            if part.dropout is None or not part.dropout.training:
                masks.append(None)
            else:
                kept = 1 - part.dropout.p
                masks.append(torch.empty(count, part.module.weight.shape[1]).bernoulli_(kept).div_(kept))
        return masks

    def _set_norms(self) -> None:
        for layer, part in zip(self._layers, self._parts, strict=True):
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

    def _set_masks(self, masks: list[Tensor | None]) -> None:
        for layer, mask in zip(self._layers, masks, strict=True):
            layer.mask = None if mask is None else mask.data_ptr()

    def forward(self, images: Tensor, masks: list[Tensor | None]) -> tuple[Tensor, Tensor]:
        """Logits (N, C) and the workspace that the backward pass needs."""
        call = self._call
        call.n, call.shards, call.images = len(images), torch.get_num_threads(), images.data_ptr()
        self._set_masks(masks)
        self._set_norms()
        workspace = torch.empty(self._library.workspace_floats(self._reference))
        logits = torch.empty(len(images), self._layers[-1].outputs)
        call.workspace, call.logits = workspace.data_ptr(), logits.data_ptr()
        self._library.forward(self._reference)
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
        call = self._call
        call.n, call.shards, call.images = len(images), shards, images.data_ptr()
        self._set_masks(masks)
        gradients = [torch.empty_like(parameter) for parameter in self._parameters]
        addresses = iter([tensor.data_ptr() for tensor in gradients])
        for index, layer in enumerate(self._layers):
            layer.weight_gradient, layer.bias_gradient = next(addresses), next(addresses)
            if layer.norm:
                layer.gamma_gradient, layer.beta_gradient = next(addresses), next(addresses)
                layer.batch = batch[index]
        scratch = torch.empty(self._library.scratch_floats(self._reference))
        call.workspace, call.scratch, call.logits = workspace.data_ptr(), scratch.data_ptr(), gradient.data_ptr()
        self._library.backward(self._reference)
        return gradients

    def _infer(self, images: Tensor) -> Tensor:
        masks = self._draw_masks(len(images))
        chunk = CHUNK * torch.get_num_threads()
        if len(images) <= chunk or any(norm.training for norm in self._norms):
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
        masks = native._draw_masks(len(images))
        logits, workspace = native.forward(images, masks)
        ctx.native, ctx.masks, ctx.workspace, ctx.shards = native, masks, workspace, torch.get_num_threads()
        ctx.batch = [layer.batch for layer in native._layers]
        ctx.save_for_backward(images, *parameters)  # so that a change of one in between is noticed
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
    """Let the native kernels do the forward and backward pass of ``model``, a ``LeNet5`` or ``MLP`` on the CPU.

    Raises:
        NotCovered: there are no kernels for a part of it.
        NativeUnavailable: the kernels cannot be built here.
    """
    model.forward = NativeForward(model)


def attached(model: nn.Module) -> bool:
    """Whether the native kernels do the work of ``model``."""
    return isinstance(model.forward, NativeForward)
