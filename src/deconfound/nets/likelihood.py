"""Pixel likelihoods: the distribution of each pixel, given a decoder's output."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


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
