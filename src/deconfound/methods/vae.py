"""VAE: one block of latent variables that reconstructs images, blind to label and environment."""

from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from deconfound.data.loading.batch import Batch
from deconfound.losses.elbo import active_units, kl_divergence, optimal_sigma_nll, row_mean
from deconfound.losses.risk import cross_entropy
from deconfound.methods.contract import Loss, Method, MethodOptions, Stage, Task, Tensors
from deconfound.nets.decoder import GaussianLikelihood, decoder_size, resized
from deconfound.nets.encoder import Encoder, Norm
from deconfound.nets.vae import Gaussian, build_decoder, build_trunk


class VaeOptions(MethodOptions):
    """Options of every VAE."""

    encoder: str = "vae"
    """vae (the paper's, Table 3), small, resnet18, densenet121 or timm:NAME; for profiles mlp,
    which vae also selects."""
    norm: Norm = "batch"
    """Normalisation in the encoder: batch, instance, group or none; vae has none of its own."""
    width: int = Field(32, ge=1)
    """Channels of the first convolutions of the encoder vae and of the last ones of the decoder;
    32 is the paper's."""
    block_size: int = Field(64, ge=1)
    """Dimensions of a block of latent variables."""
    likelihood: Literal["gaussian", "optimal_sigma"] = Field(
        "gaussian", exclude_if=lambda given: given == "gaussian"
    )
    """Of pixels, normal around what is decoded: with one learned sd, whose logarithm starts at 0
    (gaussian), or with the sd that fits the batch best, the sigma-VAE (optimal_sigma)."""
    kl_weight: float = Field(1.0, ge=0)
    """Weight of the KL terms; 1 is the evidence lower bound."""
    probe_learning_rate: float = Field(1e-2, gt=0)
    """Learning rate of the linear probes, which never train the encoder."""
    skip_above: float | None = Field(1e12, gt=0)
    """A phase whose gradient has a larger norm, or one that is not finite, does not step, and is
    counted; if none is given, a loss that is not finite ends the run."""
    clip_at: float | None = Field(1e6, gt=0)
    """Gradients of a phase with a larger norm are scaled down to it."""


class Block(NamedTuple):
    """One block of latent variables of a batch."""

    q: Gaussian
    """Posterior of each row, (B, D)."""
    prior: Gaussian | None
    """Prior of each row, (B, D); N(0, 1) if None."""
    present: Tensor
    """(B,) bool: the rows that have the block."""


class Vae(Method):
    """Variational autoencoder: Kingma & Welling 2014; the baseline of Makino et al., section 4.2.2.

    Minimises −log p(x|z) + KL(q(z|x) || N(0, 1)), summed over pixels and dimensions, with the
    networks of Makino et al., SCBD, Tables 3 and 4. The likelihood, which the paper leaves open, is
    Gaussian with one learned sd, as in the code of Wang et al. 2023, or with the likeliest sd, as
    in the σ-VAE of Rybkin et al. 2021. "representation" is the mean of q(z|x). A linear probe that
    trains nothing else predicts the label from it.
    """

    Options = VaeOptions
    options: VaeOptions
    SUMMARY = "variational autoencoder, blind to label and environment"
    PAPER = "Kingma & Welling, Auto-Encoding Variational Bayes, 2014"
    BLOCKS: ClassVar[int] = 1
    """Blocks of latent variables that the decoder sees."""

    def __init__(self, options: VaeOptions, task: Task) -> None:
        super().__init__(options, task)
        self.side = None if task.image_size is None else decoder_size(task.image_size)
        size = options.block_size
        self.encoder = self._trunk()
        self.head = nn.Linear(self.encoder.features, 2 * size)
        inputs = self.BLOCKS * size + self._decoded_beside()
        self.decoder = build_decoder(inputs, task.channels, self.side, options.width)
        self.likelihood = GaussianLikelihood() if options.likelihood == "gaussian" else None
        self.label_probe = nn.Linear(size, task.labels)

    def stages(self, steps: int) -> tuple[Stage, ...]:
        """One stage: the evidence lower bound, and probes beside it."""
        probes = [p for probe in self._probes() for p in probe.parameters()]
        others = {id(probe) for probe in probes}
        bound = self.phase(
            "bound",
            [p for p in self.parameters() if id(p) not in others],
            self._bound,
            validates=True,
        )
        probe = self.phase(
            "probes",
            probes,
            self._probe_losses,
            learning_rate=self.options.probe_learning_rate,
        )
        return (Stage("autoencoder", steps, (bound, probe)),)

    def embed(self, image: Tensor) -> Tensors:
        """Images or profiles to "representation" (B, D), the mean of q(z|x)."""
        return {"representation": self._posterior(image).mean}

    def outputs(self, batch: Batch, stage: str) -> Tensors:
        """With the representation the log-variance of q(z|x)."""
        del stage
        q = self._posterior(batch.image)
        return {"representation": q.mean, "log_variance": q.log_variance}

    def predict(self, embedded: Tensors) -> Tensor:
        """Logits (B, labels) of the linear probe."""
        logits: Tensor = self.label_probe(embedded["representation"])
        return logits

    def swap(self, content: Tensor, style: Tensor) -> Tensor | None:
        """Images of content (B, D) in style (B, D), scaled as the method's input.

        The decoder is told no environment. None for a method with one block.
        """
        if self.BLOCKS == 1:
            return None
        unknown = torch.full((len(content),), -1, device=content.device)
        return self._decoded([content, style], unknown)

    def diagnostics(self, batch: Batch, outputs: Tensors) -> Tensors:
        """Active dimensions of each block, and its KL per dimension; 0 where it has collapsed."""
        found = {}
        for name, (q, prior, present) in self._blocks(batch, outputs).items():
            found[f"active_units_{name}"] = active_units(q.rows(present))
            kl = row_mean(kl_divergence(q, prior), present)
            found[f"kl_per_dimension_{name}"] = kl / self.options.block_size
        return found

    def alarm(self, scores: dict[str, float]) -> str | None:
        """Names the blocks that have collapsed: no dimension of their posterior depends on x."""
        key = "active_units_"
        units = {name.removeprefix(key): n for name, n in scores.items() if name.startswith(key)}
        collapsed = [name for name, active in units.items() if active < 1]
        if not collapsed:
            return None
        return (
            f"posterior collapse: of {self.options.block_size} dimensions none of "
            f"{' and of '.join(collapsed)} depends on the image; lower --kl-weight, or train longer"
        )

    def _trunk(self) -> Encoder:
        options = self.options
        return build_trunk(
            options.encoder, self.task.channels, self.side, options.width, options.norm
        )

    def _decoded_beside(self) -> int:
        """Inputs of the decoder beside the latent variables."""
        return 0

    def _probes(self) -> list[nn.Module]:
        return [self.label_probe]

    def _posterior(self, image: Tensor) -> Gaussian:
        return Gaussian.of(self.head(self.encoder(self._seen(image))))

    def _seen(self, image: Tensor) -> Tensor:
        """Images resized to the 32 or 64 pixels that the networks see and reconstruct."""
        return image if self.side is None else resized(image, self.side)

    def _blocks(self, batch: Batch, outputs: Tensors) -> dict[str, Block]:
        q = Gaussian(outputs["representation"], outputs["log_variance"])
        return {"latent": Block(q, None, torch.ones_like(batch.label, dtype=torch.bool))}

    def _counted(self, batch: Batch) -> Tensor:
        """(B,) bool: the rows that have an evidence lower bound."""
        return torch.ones_like(batch.label, dtype=torch.bool)

    def _decoded(self, latent: list[Tensor], environment: Tensor) -> Tensor:
        """The decoder's output for blocks (B, D) each, of images taken in `environment` (B,)."""
        del environment
        decoded: Tensor = self.decoder(torch.cat(latent, dim=1))
        return decoded

    def _bound(self, batch: Batch, outputs: Tensors) -> dict[str, Loss]:
        """The negative evidence lower bound, in nats per image."""
        counted, blocks = self._counted(batch), self._blocks(batch, outputs)
        target = self._seen(batch.image)
        # A row has zeros in place of a block that it lacks.
        latent = [block.q.sample() * block.present[:, None] for block in blocks.values()]
        decoded = self._decoded(latent, batch.environment).to(target.dtype)
        if self.likelihood is None:
            unlikely = optimal_sigma_nll(decoded, target, counted)
        else:
            unlikely = self.likelihood.of_each(decoded, target)
        losses = {"reconstruction": Loss(row_mean(unlikely, counted))}
        for name, (q, prior, present) in blocks.items():
            divergence = kl_divergence(q, prior) * present
            losses[f"kl_{name}"] = Loss(row_mean(divergence, counted), self.options.kl_weight)
        return losses

    def _probe_losses(self, batch: Batch, outputs: Tensors) -> dict[str, Loss]:
        detached = {name: values.detach() for name, values in outputs.items()}
        return {"label_probe": Loss(cross_entropy(self.predict(detached), batch.label))}
