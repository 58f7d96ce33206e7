"""mcVAE: background variables of all cells, and salient variables that controls lack."""

from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor, nn

from deconfound.data.loading.batch import Batch
from deconfound.losses.elbo import distance_to_zero, row_mean
from deconfound.methods.contract import Backward, Loss, Optimizers, Stage, Task, Tensors
from deconfound.methods.vae import Block, Vae, VaeOptions
from deconfound.nets.vae import Gaussian, GaussianTable


class McvaeOptions(VaeOptions):
    """Options of mcVAE."""

    wasserstein_weight: float = Field(8.0, ge=0)
    """Weight of the distance between the salient posterior of controls and 0."""
    ramp_steps: int | None = Field(None, ge=1)
    """Steps over which the weight of the KL terms and the distance rises to --kl-weight; it stays
    there for the same number, and starts again. Half of --steps if not given; authors: 4500."""
    environment_size: int = Field(32, ge=0)
    """Dimensions of the environment's vector in the decoder's input; 0 for none."""


class Mcvae(Vae):
    """Multi-Contrastive VAE: Wang et al. 2023, as Makino et al., SCBD, section 4.2.2, compare it.

    All cells have background variables z; perturbed cells also have salient variables s, which are
    0 for controls. The decoder sees both and a learned vector of the environment. Minimises
    −log p(x|z, s, e) + w · (KL(q(z|x) || N(z_y, 1)) + KL(q(s|x) || N(s_y, 1))) with means learned
    for each label; for controls the last term is 8 times the squared 2-Wasserstein distance of
    q(s|x) to a point mass at 0. w rises from 0, stays, and starts again; in validation it is full.
    Rows without a label are left out.

    "content" is the mean of q(s|x), "style" that of q(z|x), "representation" both, content first.
    Deviations: controls are half of a batch in expectation, where the authors cycle through the
    shorter list; the optional terms against dependence of z and s (TC, HSIC) are left out. An
    unknown environment takes the mean of all vectors.
    """

    Options = McvaeOptions
    options: McvaeOptions
    SUMMARY = "VAE with salient variables that controls lack, and background variables"
    PAPER = "Wang et al., Multi-Contrastive VAE, 2023"
    BLOCKS = 2
    CONTROLS = True
    is_control: Tensor
    """(labels,) bool; saved with the weights."""
    updates: Tensor
    """Steps so far, () int64; saved with the weights."""

    def __init__(self, options: McvaeOptions, task: Task) -> None:
        super().__init__(options, task)
        size = options.block_size
        self.background_encoder = self._trunk()
        self.background_head = nn.Linear(self.background_encoder.features, 2 * size)
        self.salient_prior = GaussianTable(task.labels, size, learns_variance=False)
        self.background_prior = GaussianTable(task.labels, size, learns_variance=False)
        self._ramp = options.ramp_steps or 1
        told = options.environment_size
        self.environment = nn.Embedding(task.environments, told) if told else None
        is_control = torch.zeros(task.labels, dtype=torch.bool)
        is_control[list(task.controls)] = True
        self.register_buffer("is_control", is_control)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def stages(self, steps: int) -> tuple[Stage, ...]:
        """The VAE's stage, with controls and perturbed cells drawn with equal probability."""
        (stage,) = super().stages(steps)
        self._ramp = self.options.ramp_steps or max(1, steps // 2)
        return (replace(stage, draws="control"),)

    def step(
        self, batch: Batch, stage: Stage, optimizers: Optimizers, backward: Backward
    ) -> Tensors:
        """Every phase in order; then count the step, which sets the weight of the KL terms."""
        logged = super().step(batch, stage, optimizers, backward)
        self.updates += 1
        return logged

    def embed(self, image: Tensor) -> Tensors:
        """Images or profiles to "content", "style" (B, D) and "representation" (B, 2 D)."""
        salient, background = self._posterior(image), self._background(image)
        return {
            "representation": torch.cat([salient.mean, background.mean], dim=1),
            "content": salient.mean,
            "style": background.mean,
        }

    def outputs(self, batch: Batch, stage: str) -> Tensors:
        """Both posteriors."""
        del stage
        salient, background = self._posterior(batch.image), self._background(batch.image)
        return {
            "content": salient.mean,
            "log_variance": salient.log_variance,
            "style": background.mean,
            "style_log_variance": background.log_variance,
        }

    def predict(self, embedded: Tensors) -> Tensor:
        """Logits (B, labels) of the linear probe on the salient means."""
        logits: Tensor = self.label_probe(embedded["content"])
        return logits

    def _decoded_beside(self) -> int:
        return self.options.environment_size

    def _background(self, image: Tensor) -> Gaussian:
        return Gaussian.of(self.background_head(self.background_encoder(self._seen(image))))

    def _counted(self, batch: Batch) -> Tensor:
        return batch.label >= 0

    def _perturbed(self, batch: Batch) -> Tensor:
        return self._counted(batch) & ~self.is_control[batch.label.clamp(min=0)]

    def _blocks(self, batch: Batch, outputs: Tensors) -> dict[str, Block]:
        code = batch.label.clamp(min=0)
        salient = Gaussian(outputs["content"], outputs["log_variance"])
        background = Gaussian(outputs["style"], outputs["style_log_variance"])
        return {
            "salient": Block(salient, self.salient_prior(code), self._perturbed(batch)),
            "background": Block(background, self.background_prior(code), self._counted(batch)),
        }

    def _decoded(self, latent: list[Tensor], environment: Tensor) -> Tensor:
        if self.environment is None:
            return super()._decoded(latent, environment)
        table = self.environment.weight
        known = environment[:, None] >= 0
        told = torch.where(known, table[environment.clamp(min=0)], table.mean(dim=0))
        return super()._decoded([*latent, told], environment)

    def _bound(self, batch: Batch, outputs: Tensors) -> dict[str, Loss]:
        losses = super()._bound(batch, outputs)
        counted = self._counted(batch)
        salient = Gaussian(outputs["content"], outputs["log_variance"])
        of_control = distance_to_zero(salient) * (counted & ~self._perturbed(batch))
        weight = self.options.kl_weight * self.options.wasserstein_weight
        losses["wasserstein"] = Loss(row_mean(of_control, counted), weight)
        share = self._share() if self.training else 1.0
        return {
            name: loss if name == "reconstruction" else loss._replace(weight=share * loss.weight)
            for name, loss in losses.items()
        }

    def _share(self) -> float:
        """Share of the full weight in this step."""
        within = int(self.updates) % (2 * self._ramp)
        return min(1.0, (within + 1) / self._ramp)
