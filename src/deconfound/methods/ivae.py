"""iVAE: two blocks of latent variables whose priors depend on the label and on the environment."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from deconfound.data.loading.batch import Batch
from deconfound.losses.elbo import prior_spread
from deconfound.losses.risk import cross_entropy
from deconfound.methods.contract import Loss, Task, Tensors
from deconfound.methods.vae import Block, Vae, VaeOptions
from deconfound.nets.layers import DomainHeads
from deconfound.nets.vae import Gaussian, GaussianTable

LEAST_SPREAD = 0.1
"""Least spread of the prior means of the classes, in sd of the prior; less is a collapse."""


class IvaeOptions(VaeOptions):
    """Options of iVAE."""

    style_posterior: Literal["image_environment", "image"] = Field(
        "image_environment", exclude_if=lambda given: given == "image_environment"
    )
    """What q(z_s) is told: the image and its environment, q(z_s|x, e), as in the paper, or the
    image alone, q(z_s|x)."""


class Ivae(Vae):
    """Identifiable VAE: Khemakhem et al. 2020, with the blocks of Makino et al., SCBD, section 3.

    Minimises −log p(x|z_c, z_s) + KL(q(z_c|x) || p(z_c|y)) + KL(q(z_s|x, e) || p(z_s|e)). The
    priors are learned normal distributions, one for each label and one for each environment. For
    q(z_s|x, e) each environment has a linear layer, and the observed environment's is used. Rows
    whose label or environment is missing are left out.

    "representation" and "content" are the mean of q(z_c|x), which needs no environment. "style" is
    Σ_e p(e|x) · mean of q(z_s|x, e), an addition, since images are embedded without their
    environment. p(e|x) is given by a linear probe, which does not train the encoder.

    With `style_posterior` "image", which is ours, q(z_s|x) stands in place of q(z_s|x, e): all
    environments share one linear layer, and "style" is the mean of q(z_s|x).
    """

    Options = IvaeOptions
    options: IvaeOptions
    SUMMARY = "VAE with a prior on z_c for each label and one on z_s for each environment"
    PAPER = (
        "Khemakhem et al., Variational Autoencoders and Nonlinear ICA, 2020; Makino et al., SCBD"
    )
    BLOCKS = 2

    def __init__(self, options: IvaeOptions, task: Task) -> None:
        super().__init__(options, task)
        size = options.block_size
        self.style_encoder = self._trunk()
        features = self.style_encoder.features
        heads = task.environments if self._style_is_told else 1
        self.style_heads = DomainHeads(heads, (features, 2 * size))
        self.content_prior = GaussianTable(task.labels, size)
        self.style_prior = GaussianTable(task.environments, size)
        self.environment_probe = nn.Linear(features, task.environments)

    def embed(self, image: Tensor) -> Tensors:
        """Images or profiles to "representation", "content" and "style", (B, D) each."""
        content = self._posterior(image).mean
        features = self.style_encoder(self._seen(image))
        first = torch.zeros(len(image), dtype=torch.int64, device=image.device)
        if not self._style_is_told:
            style = self._style(features, first).mean
            return {"representation": content, "content": content, "style": style}
        share = self.environment_probe(features).softmax(dim=1)
        style = torch.zeros_like(content)
        for code in range(self.task.environments):
            style = style + share[:, code, None] * self._style(features, first + code).mean
        return {"representation": content, "content": content, "style": style}

    def outputs(self, batch: Batch, stage: str) -> Tensors:
        """Both posteriors, z_s for the observed environment, and the features behind z_s."""
        del stage
        content = self._posterior(batch.image)
        features = self.style_encoder(self._seen(batch.image))
        style = self._style(features, batch.environment.clamp(min=0))
        return {
            "representation": content.mean,
            "log_variance": content.log_variance,
            "style": style.mean,
            "style_log_variance": style.log_variance,
            "style_features": features,
        }

    def diagnostics(self, batch: Batch, outputs: Tensors) -> Tensors:
        """The diagnostics of a VAE, and the spread of each prior's means, in sd of the prior."""
        return super().diagnostics(batch, outputs) | {
            "prior_spread_content": prior_spread(self.content_prior.every()),
            "prior_spread_style": prior_spread(self.style_prior.every()),
        }

    def alarm(self, scores: dict[str, float]) -> str | None:
        """Names the posteriors that have collapsed, and the priors that ignore their class."""
        said = super().alarm(scores)
        of = {"content": "label", "style": "environment"}
        if self.task.environments == 1:
            del of["style"]
        collapsed = [
            f"the prior of {block} does not depend on the {known}"
            for block, known in of.items()
            if scores.get(f"prior_spread_{block}", 1.0) < LEAST_SPREAD
        ]
        if not collapsed:
            return said
        found = f"prior collapse: {' and '.join(collapsed)}; lower --learning-rate, or train longer"
        return found if said is None else f"{said}; {found}"

    def _probes(self) -> list[nn.Module]:
        return [self.label_probe, self.environment_probe]

    @property
    def _style_is_told(self) -> bool:
        """Whether q(z_s) depends on the environment beside the image."""
        return self.options.style_posterior == "image_environment"

    def _style(self, features: Tensor, environment: Tensor) -> Gaussian:
        of = environment if self._style_is_told else torch.zeros_like(environment)
        return Gaussian.of(self.style_heads(features, of))

    def _counted(self, batch: Batch) -> Tensor:
        return (batch.label >= 0) & (batch.environment >= 0)

    def _blocks(self, batch: Batch, outputs: Tensors) -> dict[str, Block]:
        counted = self._counted(batch)
        content = Gaussian(outputs["representation"], outputs["log_variance"])
        style = Gaussian(outputs["style"], outputs["style_log_variance"])
        of_label = self.content_prior(batch.label.clamp(min=0))
        of_environment = self.style_prior(batch.environment.clamp(min=0))
        return {
            "content": Block(content, of_label, counted),
            "style": Block(style, of_environment, counted),
        }

    def _probe_losses(self, batch: Batch, outputs: Tensors) -> dict[str, Loss]:
        logits = self.environment_probe(outputs["style_features"].detach())
        found = Loss(cross_entropy(logits, batch.environment))
        return super()._probe_losses(batch, outputs) | {"environment_probe": found}
