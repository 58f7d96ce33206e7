"""What an imputer is: a trained method that redraws images in the style of other environments."""

from torch import Tensor

from deconfound.methods.contract.method import Method


class Imputer(Method):
    """A method that imputes images as if they had been taken in another environment.

    Pernice et al., Interventional Style Transfer, 2023, eq. 1: the intervention do(C = c). In
    evaluation mode `impute` returns the same image for the same arguments.
    """

    def style(self, image: Tensor, environment: Tensor) -> Tensor:
        """The style of images: (B, C, H, W) taken in `environment` (B,) int64 to (B, S) float32.

        −1 is an unknown environment, for which a method may raise UserError.
        """
        raise NotImplementedError

    def relative_style(self, own: Tensor, source: Tensor, target: Tensor) -> Tensor:
        """Shift each image's own style by what leads from `source` to `target`; (B, S) each.

        `source` is the mean style of the image's environment and `target` the mean style it is
        brought to, so a style equal to `source` becomes `target`. Optional.
        """
        raise NotImplementedError

    def impute(self, image: Tensor, style: Tensor) -> Tensor:
        """The images (B, C, H, W) in the styles (B, S): (B, C, H, W) float32, as `Batch.image`."""
        raise NotImplementedError
