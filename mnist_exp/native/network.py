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
    )


class Structure(NamedTuple):
    """What the kernels need to know of a model."""

    constants: Mapping[str, int]  # macros of the source
    layers: tuple[nn.Conv2d | nn.Linear, ...]
    dropouts: tuple[nn.Dropout | None, ...]  # in front of each layer
    image_size: int
    after: nn.Module | None  # what PyTorch does with the logits


def structure(model: nn.Module) -> Structure:
    """Read a model's modules.

    Raises:
        NotCovered: it is no LeNet5 or MLP, or has a part for which there is no kernel.
    """
    if type(model) not in {LeNet5, MLP}:
        raise NotCovered(f"there are no kernels for {type(model).__name__}")
    layers: list[nn.Conv2d | nn.Linear] = []
    dropouts: list[nn.Dropout | None] = []
    activations: set[type[nn.Module]] = set()
    waiting: nn.Dropout | None = None
    after: nn.Module | None = None
    for module in model.modules():
        match module:
            case nn.Conv2d() | nn.Linear():
                layers.append(module)
                dropouts.append(waiting)
                waiting = None
            case nn.Dropout():
                waiting = module
            case nn.Softmax():
                after = module
            case nn.BatchNorm1d() | nn.BatchNorm2d():
                raise NotCovered("there are no kernels for batch norm")
            case nn.AvgPool2d():
                raise NotCovered("there are no kernels for average pooling")
            case _ if type(module) in ACTIVATIONS:
                activations.add(type(module))
    if len(layers) > MOST_LAYERS:
        raise NotCovered(f"there are kernels for {MOST_LAYERS} layers at most, and it has {len(layers)}")
    constants = {"ACTIVATION": ACTIVATIONS[activations.pop()] if activations else 0}
    assert isinstance(model, LeNet5 | MLP)
    image_size, first = model.image_size, layers[0]
    if isinstance(first, nn.Conv2d):
        kernel, padding = int(first.kernel_size[0]), int(first.padding[0])
        if (image_size + 2 * padding) ** 2 > MOST_PIXELS:
            raise NotCovered(f"there are kernels for {MOST_PIXELS} pixels at most, padding included")
        maps1, maps2 = first.out_channels, layers[1].weight.shape[0]
        constants |= {"SIDE": image_size, "PADDING": padding, "KERNEL": kernel, "CHANNELS1": maps1, "CHANNELS2": maps2}
    return Structure(constants, tuple(layers), tuple(dropouts), image_size, after)


class NativeForward:
    """Takes the place of a model's ``forward``: images (N, 1, S, S), float32, to logits (N, C), float32.

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
        self._modules, self._dropouts, self._after = found.layers, found.dropouts, found.after
        self._shape = (1, found.image_size, found.image_size)
        self._parameters = tuple(p for layer in found.layers for p in (layer.weight, layer.bias) if p is not None)
        self._trained = any(parameter.requires_grad for parameter in self._parameters)
        self._addresses: list[int] = []
        self._layers = (Layer * len(found.layers))()
        self._call = Call(len(found.layers), ctypes.addressof(self._layers))
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
        )

    def _check_parameters(self) -> None:
        """Before C gets an address: is there what it expects? Asked again when an address has changed."""
        addresses = [parameter.data_ptr() for parameter in self._parameters]
        if addresses == self._addresses:
            return
        for index, layer in enumerate(self._layers):
            weight, bias = self._parameters[2 * index : 2 * index + 2]
            for parameter in (weight, bias):
                if parameter.dtype is not torch.float32 or parameter.device.type != "cpu":
                    raise TypeError(
                        f"native kernels take float32 on the CPU, not {parameter.dtype} on {parameter.device}"
                    )
            if weight.ndim == 2 and not (weight.is_contiguous() and bias.is_contiguous()):
                raise TypeError("native kernels take contiguous weights of linear layers")
            layer.inputs, layer.outputs = weight.shape[1], weight.shape[0]
            layer.weight, layer.bias = weight.data_ptr(), bias.data_ptr()
            if weight.ndim == 4:
                layer.strides = (ctypes.c_int64 * 4)(*weight.stride())
        self._addresses = addresses

    def _draw_masks(self, count: int) -> list[Tensor | None]:
        """What dropout multiplies each layer's input by: the draws that ``nn.Dropout`` would make, in their order."""
        masks: list[Tensor | None] = []
        for module, layer in zip(self._dropouts, self._modules, strict=True):
            if module is None or not module.training:
                masks.append(None)
            else:
                kept = 1 - module.p
                masks.append(torch.empty(count, layer.weight.shape[1]).bernoulli_(kept).div_(kept))
        return masks

    def _set_masks(self, masks: list[Tensor | None]) -> None:
        for layer, mask in zip(self._layers, masks, strict=True):
            layer.mask = None if mask is None else mask.data_ptr()

    def forward(self, images: Tensor, masks: list[Tensor | None]) -> tuple[Tensor, Tensor]:
        """Logits (N, C) and the workspace that the backward pass needs."""
        call = self._call
        call.n, call.shards, call.images = len(images), torch.get_num_threads(), images.data_ptr()
        self._set_masks(masks)
        workspace = torch.empty(self._library.workspace_floats(self._reference))
        logits = torch.empty(len(images), self._layers[-1].outputs)
        call.workspace, call.logits = workspace.data_ptr(), logits.data_ptr()
        self._library.forward(self._reference)
        return logits, workspace

    def backward(
        self, images: Tensor, masks: list[Tensor | None], workspace: Tensor, shards: int, gradient: Tensor
    ) -> list[Tensor]:
        """Gradients of the parameters, in their order and layout."""
        call = self._call
        call.n, call.shards, call.images = len(images), shards, images.data_ptr()
        self._set_masks(masks)
        gradients = [torch.empty_like(parameter) for parameter in self._parameters]
        for index, layer in enumerate(self._layers):
            layer.weight_gradient = gradients[2 * index].data_ptr()
            layer.bias_gradient = gradients[2 * index + 1].data_ptr()
        scratch = torch.empty(self._library.scratch_floats(self._reference))
        call.workspace, call.scratch, call.logits = workspace.data_ptr(), scratch.data_ptr(), gradient.data_ptr()
        self._library.backward(self._reference)
        return gradients

    def _infer(self, images: Tensor) -> Tensor:
        masks = self._draw_masks(len(images))
        chunk = CHUNK * torch.get_num_threads()
        if len(images) <= chunk:
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
        ctx.save_for_backward(images, *parameters)  # so that a change of one in between is noticed
        return logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, *_ = ctx.saved_tensors
        native: NativeForward = ctx.native
        return None, None, *native.backward(images, ctx.masks, ctx.workspace, ctx.shards, gradient.contiguous())


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
