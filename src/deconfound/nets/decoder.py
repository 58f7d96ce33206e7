"""The additive decoder, and the likelihood of each pixel, given a decoder's output."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from deconfound.errors import UserError

DECODER_SIZES = (32, 64)


def decoder_size(image_size: int) -> int:
    """Side of the decoded image: 32 for images up to 32 px, else 64.

    The caller resizes its targets if `image_size` is another.
    """
    return 32 if image_size <= 32 else 64


def resized(image: Tensor, side: int) -> Tensor:
    """Images (B, C, H, H) resized to (B, C, side, side), by areas."""
    if image.shape[-1] == side:
        return image
    return functional.interpolate(image, (side, side), mode="area")


class AdditiveDecoder(nn.Module):
    """Reconstructs an image from a content and a style block, added before the last convolution.

    content (B, z_content), style (B, z_style) -> (B, channels, image_size, image_size): the
    parameters of a likelihood, unbounded (logits for Bernoulli, means for Gaussian).
    `width` scales both branches; 256 is the paper's. Detach the blocks before decoding, so that
    reconstruction does not train the encoders.
    Makino et al., SCBD, A.1.1 and Table 2, with two additions: the input is as wide as the block
    (the table prints 64), and 64 pixels, for which the paper has no decoder, take a fifth block.
    Initial weights, which the paper leaves open, keep the variance of a unit-norm block from layer
    to layer; under PyTorch's defaults the output stays constant for hundreds of steps.
    Raises UserError when `image_size` is neither 32 nor 64, or `width` is odd.
    """

    def __init__(
        self, z_content: int, z_style: int, channels: int, image_size: int, width: int = 256
    ) -> None:
        super().__init__()
        if image_size not in DECODER_SIZES:
            raise UserError(f"decoder of {image_size} px; expected 32 or 64: resize the targets")
        if width % 2:
            raise UserError(f"decoder width {width}; expected an even number")
        self.content_branch = _branch(z_content, image_size, width)
        self.style_branch = _branch(z_style, image_size, width)
        self.to_image = nn.Conv2d(width // 2, channels, kernel_size=1)
        for branch in (self.content_branch, self.style_branch):
            branch.apply(_keep_variance)

    def forward(self, content: Tensor, style: Tensor) -> Tensor:
        image: Tensor = self.to_image(self.content_branch(content) + self.style_branch(style))
        return image


def _keep_variance(layer: nn.Module) -> None:
    """Normal weights of sd 1 for a linear layer (its input has norm 1), He's for convolutions."""
    if isinstance(layer, nn.Linear):
        nn.init.normal_(layer.weight)
        nn.init.zeros_(layer.bias)
    he_convolution(layer)


def he_convolution(layer: nn.Module) -> None:
    """He's normal weights for a convolution, by the inputs of one pixel; other layers stay."""
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        taps = float(math.prod(layer.kernel_size))
        if isinstance(layer, nn.ConvTranspose2d):
            taps /= math.prod(layer.stride)
        nn.init.normal_(layer.weight, std=math.sqrt(2 / (layer.in_channels * taps)))
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def _branch(block_size: int, image_size: int, width: int) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Linear(block_size, width * 2 * 2),
        nn.GELU(),
        nn.Unflatten(1, (width, 2, 2)),
    ]
    side = 2
    while side < image_size:
        side *= 2
        outputs = width // 2 if side == image_size else width
        layers += [
            nn.ConvTranspose2d(width, width, 3, stride=2, padding=1, output_padding=1),
            nn.GELU(),
            nn.Conv2d(width, outputs, 3, padding=1),
            nn.GELU(),
        ]
    return nn.Sequential(*layers)


class BernoulliLikelihood(nn.Module):
    """Pixels in [0, 1] as probabilities; the decoder's output is their logits.

    Makino et al., SCBD, the Colored MNIST likelihood; a mean over pixels, not a sum.
    """

    def negative_log_likelihood(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean over images, channels and pixels, in nats: output, target (B, C, H, W) -> ()."""
        return functional.binary_cross_entropy_with_logits(output, target)

    def mean(self, output: Tensor) -> Tensor:
        """The expected image, in [0, 1]: output (B, C, H, W) -> the same shape."""
        return output.sigmoid()


class GaussianLikelihood(nn.Module):
    """Pixels of any range; the decoder's output is their mean, and one learned scalar their sd.

    Makino et al., SCBD, the likelihood of all data but Colored MNIST; a mean over pixels, not a
    sum. The log standard deviation starts at 0.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_sd = nn.Parameter(torch.zeros(()))

    def negative_log_likelihood(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean over images, channels and pixels, in nats: output, target (B, C, H, W) -> ()."""
        squared_error = functional.mse_loss(output, target)
        constant = 0.5 * math.log(2 * math.pi)
        return 0.5 * squared_error * torch.exp(-2 * self.log_sd) + self.log_sd + constant

    def of_each(self, output: Tensor, target: Tensor) -> Tensor:
        """Negative log-likelihood of each row, summed over its pixels or features, in nats.

        output, target (B, ...) -> (B,): the sum that an evidence lower bound needs.
        """
        squared_error = ((output - target) ** 2).flatten(1)
        constant = self.log_sd + 0.5 * math.log(2 * math.pi)
        own: Tensor = 0.5 * squared_error.sum(dim=1) * torch.exp(-2 * self.log_sd)
        return own + squared_error.shape[1] * constant

    def mean(self, output: Tensor) -> Tensor:
        """The expected image, in the target's units: output (B, C, H, W) -> the same."""
        return output
