"""StarGAN v2: a generator that redraws an image in the style of another environment."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from pydantic import Field
from torch import Tensor

from deconfound.data.loading.batch import Batch
from deconfound.errors import UserError
from deconfound.losses.generated import fake_loss, r1_penalty, real_loss, row_distance
from deconfound.methods.contract import (
    Backward,
    Imputer,
    Loss,
    MethodOptions,
    OptimizerName,
    Optimizers,
    Stage,
    Task,
    Tensors,
    weighted_sum,
)
from deconfound.nets.stargan2 import Discriminator, Generator, MappingNetwork, StyleEncoder
from deconfound.nets.weights import averaged_copy, constant, early_decay, update_average

BETAS = (0.0, 0.99)
REFERENCES = 2
GENERATOR, STYLE_ENCODER, MAPPING = "generator", "style_encoder", "mapping"
AVERAGED = (GENERATOR, STYLE_ENCODER, MAPPING)


class StarGan2Options(MethodOptions):
    """Options of StarGAN v2."""

    optimizer: OptimizerName = "adam"
    """adamw, adam or sgd; the averages of the first two decay by 0 and 0.99."""
    learning_rate: float = Field(1e-4, gt=0)
    """Learning rate of the generator, the style encoder and the discriminator."""
    mapping_learning_rate: float = Field(1e-6, gt=0)
    """Learning rate of the mapping network."""
    weight_decay: float = Field(1e-4, ge=0)
    """Weight decay of the optimizers."""
    style_weight: float = Field(1.0, ge=0)
    """Weight of the style that the style encoder finds in an imputed image."""
    diversity_weight: float = Field(1.0, ge=0)
    """Weight at first of the distance between images imputed in two styles (2 on photographs)."""
    diversity_steps: int | None = Field(None, ge=1)
    """Steps over which that weight falls linearly to 0; all if not given (paper: 100000)."""
    cycle_weight: float = Field(1.0, ge=0)
    """Weight of the original, imputed back from an imputed image."""
    r1_weight: float = Field(1.0, ge=0)
    """Weight of the penalty on the discriminator's gradient at real images."""
    average: float = Field(0.999, ge=0, lt=1)
    """Decay of the averaged weights, which impute and embed; less in the first steps."""
    width: int = Field(16, ge=1)
    """Channels of the first layer, doubled at each halving of the image (paper: 16384 / size)."""
    max_width: int = Field(128, ge=1)
    """Channels of a layer at most (paper: 512)."""
    mapping_width: int = Field(128, ge=1)
    """Units of the mapping network's layers (paper: 512)."""
    style_size: int = Field(64, ge=1)
    """Dimensions of a style."""
    latent_size: int = Field(16, ge=1)
    """Dimensions of the noise from which the mapping network makes styles."""


class StarGan2(Imputer):
    """Image translation between environments, which are its domains.

    Choi et al., StarGAN v2: Diverse Image Synthesis for Multiple Domains, 2020, eq. 1 to 5; the
    baseline of Pernice et al., section 5.2. In a step discriminator and generator learn twice each,
    from styles made of noise and from styles of reference images; the mapping network and the style
    encoder learn with the generator's first. "representation" is the output of the averaged style
    encoder's trunk, the part before its linear layer for each environment, so embedding needs no
    environment. No label is read and none predicted, so the last weights are used.

    Deviations: small networks by default; until step 9,000 averaged weights follow faster
    (`early_decay`), so that a short run is not the average of its initial weights; images are not
    cropped; no label picks the references.
    """

    Options = StarGan2Options
    options: StarGan2Options
    SUMMARY = "redraws images in the style of another environment, by adversarial training"
    PAPER = "Choi et al., StarGAN v2: Diverse Image Synthesis for Multiple Domains, 2020"
    ENVIRONMENTS = 2

    count: Tensor
    """() int64: steps taken."""

    def __init__(self, options: StarGan2Options, task: Task) -> None:
        super().__init__(options, task)
        shape = task.channels, task.require_images("stargan2 draws images")
        domains, styles = task.environments, options.style_size
        widths = options.width, options.max_width
        self.generator = Generator(*shape, styles, *widths)
        self.style_encoder = StyleEncoder(*shape, styles, domains, *widths)
        self.mapping = MappingNetwork(options.latent_size, styles, domains, options.mapping_width)
        self.discriminator = Discriminator(*shape, domains, *widths)
        self.average_generator = averaged_copy(self.generator)
        self.average_style_encoder = averaged_copy(self.style_encoder)
        self.average_mapping = averaged_copy(self.mapping)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def stages(self, steps: int) -> tuple[Stage, ...]:
        """One stage: the discriminator, the generator with the style encoder, the mapping."""
        imputed = partial(self._imputed, fades=self.options.diversity_steps or steps)
        phases = (
            self.phase("discriminator", self.discriminator.parameters(), self._told_apart),
            self.phase(
                "generator",
                [*self.generator.parameters(), *self.style_encoder.parameters()],
                partial(imputed, trained=(GENERATOR, STYLE_ENCODER)),
                validates=True,
            ),
            self.phase(
                "mapping",
                self.mapping.parameters(),
                partial(imputed, trained=(MAPPING,)),
                learning_rate=self.options.mapping_learning_rate,
            ),
        )
        stage = Stage(
            "transfer",
            steps,
            tuple(replace(phase, betas=BETAS) for phase in phases),
            validation_batches=20,
            draws="environment",
            partner="environment",
            partner_draws=REFERENCES,
            selects=False,
        )
        return (stage,)

    def step(
        self, batch: Batch, stage: Stage, optimizers: Optimizers, backward: Backward
    ) -> Tensors:
        """Discriminator twice, all imputing networks, generator; then the averages follow."""
        discriminator, generator, mapping = zip(stage.phases, optimizers, strict=True)
        latent = self.outputs(batch, stage.name)
        reference = {name: value for name, value in latent.items() if "latent" not in name}
        imputed = partial(self._imputed, batch, fades=self.options.diversity_steps or stage.steps)
        objectives = (
            (partial(self._told_apart, batch, latent), [discriminator]),
            (partial(self._told_apart, batch, reference), [discriminator]),
            (partial(imputed, latent, trained=AVERAGED), [generator, mapping]),
            (partial(imputed, reference, trained=(GENERATOR,)), [generator]),
        )
        logged: Tensors = {}
        for objective, stepping in objectives:
            torch.clear_autocast_cache()  # of weights cast before they moved, or without gradient
            losses = objective()
            for _, optimizer in stepping:
                optimizer.zero_grad(set_to_none=True)  # what is constant below then does not move
            parameters = [parameter for phase, _ in stepping for parameter in phase.parameters]
            backward(weighted_sum(losses), parameters)
            for _, optimizer in stepping:
                optimizer.step()
            logged |= {name: loss.value.detach() for name, loss in losses.items()}
        decay = early_decay(self.options.average, int(self.count))
        for name in AVERAGED:
            update_average(getattr(self, f"average_{name}"), getattr(self, name), decay)
        self.count += 1
        return logged

    def embed(self, image: Tensor) -> Tensors:
        """(B, C, H, W) to "representation" (B, features), of the averaged style encoder's trunk."""
        return {"representation": self.average_style_encoder.trunk(image)}

    def outputs(self, batch: Batch, stage: str) -> Tensors:
        """Images, their target environments, and two references and two noises for each target.

        "image", "environment", "target", "reference", "other_reference", "latent", "other_latent",
        for rows whose own and whose reference's environment are known.
        """
        del stage
        own, first, second = reference_rows(batch)
        environment = batch.environment
        second = second.where(environment[second] == environment[first], first)
        known = (environment[own] >= 0) & (environment[first] >= 0)
        own, first, second = own[known], first[known], second[known]
        latents = draw_latents(batch, own, self.options.latent_size)
        return {
            "image": batch.image[own],
            "environment": environment[own],
            "target": environment[first],
            "reference": batch.image[first],
            "other_reference": batch.image[second],
            "latent": latents[0],
            "other_latent": latents[1],
        }

    def style(self, image: Tensor, environment: Tensor) -> Tensor:
        """(B, C, H, W) taken in `environment` (B,) to (B, style_size), by the style encoder.

        Raises UserError for an unknown environment: each has a linear layer of its own.
        """
        style: Tensor = self.average_style_encoder(image, _known(environment))
        return style

    def latent_style(self, latent: Tensor, environment: Tensor) -> Tensor:
        """Styles (B, style_size) of environments (B,) int64, made of noise (B, latent_size).

        Raises UserError for an unknown environment.
        """
        style: Tensor = self.average_mapping(latent, _known(environment))
        return style

    def impute(self, image: Tensor, style: Tensor, source: Tensor | None = None) -> Tensor:
        """The images (B, C, H, W) in the styles (B, style_size), by the averaged generator."""
        del source
        imputed: Tensor = self.average_generator(image, style)
        return imputed

    def _told_apart(self, batch: Batch, outputs: Tensors) -> dict[str, Loss]:
        del batch
        kind = _kind(outputs)
        with torch.no_grad():
            style, _ = _styles(outputs, self.style_encoder, self.mapping)
            imputed = self.generator(outputs["image"], style)
        image = outputs["image"].detach().requires_grad_()
        logits = self.discriminator(image, outputs["environment"])
        return {
            f"{kind}_real": Loss(real_loss(logits)),
            f"{kind}_fake": Loss(fake_loss(self.discriminator(imputed, outputs["target"]))),
            f"{kind}_r1": Loss(r1_penalty(logits, image), self.options.r1_weight),
        }

    def _imputed(
        self, batch: Batch, outputs: Tensors, *, trained: tuple[str, ...], fades: int
    ) -> dict[str, Loss]:
        """The losses of imputed images; gradients reach the networks named `trained` alone."""
        del batch
        generator, style_encoder, mapping = (
            getattr(self, name) if name in trained else constant(getattr(self, name))
            for name in AVERAGED
        )
        image, target = outputs["image"], outputs["target"]
        style, other_style = _styles(outputs, style_encoder, mapping)
        imputed = generator(image, style)
        with torch.no_grad():
            otherwise = generator(image, other_style)
        back = generator(imputed, style_encoder(image, outputs["environment"]))
        options, kind = self.options, _kind(outputs)
        diversity_weight = options.diversity_weight * max(0.0, 1.0 - int(self.count) / fades)
        adversarial = real_loss(constant(self.discriminator)(imputed, target))
        found = row_distance(style_encoder(imputed, target), style)
        return {
            f"{kind}_adversarial": Loss(adversarial),
            f"{kind}_style": Loss(found, options.style_weight),
            f"{kind}_diversity": Loss(row_distance(imputed, otherwise), -diversity_weight),
            f"{kind}_cycle": Loss(row_distance(back, image), options.cycle_weight),
        }


def reference_rows(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Rows to impute, and each one's first and second reference; (n,) int64 each.

    References are the batch's partners; without partners, the row before is both.
    """
    rows = torch.arange(len(batch), device=batch.environment.device)
    if not batch.partners:
        return rows, rows.roll(1), rows.roll(1)
    own = batch.partners // REFERENCES
    first, second = rows[len(batch) - batch.partners :][: REFERENCES * own].chunk(REFERENCES)
    return rows[:own], first, second


def draw_latents(batch: Batch, own: Tensor, size: int) -> Tensor:
    """Normal noise (2, n, size) for the rows `own` (n,) of a batch, from the global stream."""
    return torch.randn(2, len(own), size, dtype=batch.image.dtype, device=batch.image.device)


def _known(environment: Tensor) -> Tensor:
    """The environments (B,), none of them −1, for which the networks have no layer."""
    if len(environment) and int(environment.min()) < 0:
        raise UserError(
            "stargan2: an image of an environment unknown to training has no style; expected "
            "images of training environments as references"
        )
    return environment


def _kind(outputs: Tensors) -> str:
    return "latent" if "latent" in outputs else "reference"


def _styles(
    outputs: Tensors, style_encoder: Callable[..., Tensor], mapping: Callable[..., Tensor]
) -> tuple[Tensor, Tensor]:
    """Two styles of each target environment, made of noise or of references."""
    kind = _kind(outputs)
    network = mapping if kind == "latent" else style_encoder
    target = outputs["target"]
    return network(outputs[kind], target), network(outputs[f"other_{kind}"], target)
