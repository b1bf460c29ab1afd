"""Write a trained network as an ONNX file, for use from other languages: ``python export_onnx.py DIR network.onnx``.

The network in the file takes images (N, channels, size, size), float32 in 0..1 with bright ink, prepares them like the data of
the run, and returns logits (N, classes). The script needs ``pip install 'mnist-exp[onnx]'``.
"""

import sys

import onnxruntime
import torch
from torch import Tensor, nn

import mnist_exp


class Prepared(nn.Module):
    """A network for images in 0..1."""

    def __init__(self, model: nn.Module, mean: float | list[float], std: float | list[float]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.model((images - self.mean) / self.std)


directory, file = sys.argv[1:]
run = mnist_exp.load_run(directory)
data = run.whole_config.data
model = Prepared(mnist_exp.load_model(directory), data.mean, data.std).eval()
images = torch.rand(100, data.channels, data.image_size, data.image_size)
any_number = {"images": {0: torch.export.Dim("N")}}
names = {"input_names": ["images"], "output_names": ["logits"]}
torch.onnx.export(model, (images[:2],), file, **names, dynamic_shapes=any_number, external_data=False, verbose=False)

(logits,) = onnxruntime.InferenceSession(file).run(["logits"], {"images": images.numpy()})
with torch.no_grad():
    difference = (torch.from_numpy(logits) - model(images)).abs().max()
print(f"{file}: the largest difference from PyTorch's logits is {difference:.1e}")
