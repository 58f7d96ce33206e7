"""IST: a generator redraws images as if they had been taken in another environment."""

from collections.abc import Callable
from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor, nn

from deconfound.data.loading.batch import Batch
from deconfound.losses.generated import (
    class_matching,
    content_distance,
    fake_loss,
    pixel_distance,
    r1_penalty,
    real_loss,
    style_loss,
)
from deconfound.losses.risk import cross_entropy
from deconfound.methods.contract import (
    Backward,
    Imputer,
    Loss,
    MethodOptions,
    Objective,
    Optimizers,
    Phase,
    Stage,
    Task,
    Tensors,
)
from deconfound.nets.ist import (
    AdaIN,
    Features,
    Output,
    TappedName,
    UNetGenerator,
    build_tapped_encoder,
    relative_code,
    style_code,
)
from deconfound.nets.weights import averaged_copy, constant, early_decay, update_average

BETAS = (0.0, 0.99)


class IstOptions(MethodOptions):
    """Options of IST."""

    encoder: TappedName = "small"
    """small, or resnet18 for images of 33 px and more."""
    adain: AdaIN = "direct"
    """How the style sets the mean and sd of a map: direct, to those of the style image's map;
    affine, to a linear function of those."""
    output: Output = "matched"
    """What the generator draws: the image (linear), a change of the content image (residual), or a
    change of the content image whose channels have the style's mean and sd (matched)."""
    transfer_steps: int = Field(300, ge=1)
    """Steps of critic and generator, after the encoder's."""
    transfer_batch_size: int = Field(8, ge=1)
    """Content images in a batch of critic and generator; each is joined by a style image."""
    transfer_learning_rate: float = Field(1e-3, gt=0)
    """Learning rate of critic and generator; 1e-4 suits tens of thousands of steps."""
    transfer_weight_decay: float = Field(1e-4, ge=0)
    """Weight decay of critic and generator."""
    adversarial_weight: float = Field(1.0, ge=0)
    """Weight of the critic's loss on generated images."""
    style_weight: float = Field(1.0, ge=0)
    """Weight of the distance to the style image, by Gram matrices."""
    cycle_weight: float = Field(1.0, ge=0)
    """Weight of the distance between the content image and the image redrawn in its own style."""
    content_weight: float = Field(10.0, ge=0)
    """Weight of the distance to the content image in pixels."""
    content_map_weight: float = Field(1.0, ge=0)
    """Weight of the distance to the content image in normalised maps of the encoder."""
    match_weight: float = Field(1.0, ge=0)
    """Weight of the distance to the encoder's prediction for the content image."""
    r1_weight: float = Field(1.0, ge=0)
    """Weight of the critic's squared gradient at real images."""
    average_decay: float = Field(0.999, ge=0, lt=1)
    """Decay of the averaged generator weights, which impute."""


class Ist(Imputer):
    """Interventional Style Transfer.

    Pernice et al., Interventional Style Transfer, 2023, eq. 1 to 7. An encoder learns to predict
    label and environment, and is frozen. A U-Net generator draws an image from the encoder's maps
    of a content image and from the mean and sd of its maps of a style image, against a critic that
    begins as the encoder and has one head for each environment. "representation" is the mean of the
    encoder's last map.

    Where the paper leaves a choice: style codes hold statistics of the pixels and of maps before
    their norm; the style loss compares with the style image; the critic's heads see these
    statistics too, and its real images are the style images; adversarial terms, R1, Adam and
    averaged weights are as in StarGAN v2. Deviations, all options: the encoder `small`, the output
    `matched`, far fewer steps.
    """

    Options = IstOptions
    options: IstOptions
    SUMMARY = "redraws images in the style of other environments, for predictors to train on"
    PAPER = "Pernice et al., Interventional Style Transfer, 2023, eq. 7"
    ENVIRONMENTS = 2

    updates: Tensor
    """() int64: updates of the averaged weights."""

    def __init__(self, options: IstOptions, task: Task) -> None:
        super().__init__(options, task)
        size, channels = task.require_images("ist redraws images"), task.channels
        self.channels = channels
        self.encoder = build_tapped_encoder(options.encoder, channels, size)
        widths, features = self.encoder.widths, self.encoder.features
        seen = features + 2 * (channels + sum(widths))
        self.label_head = nn.Linear(features, task.labels)
        self.environment_head = nn.Linear(seen, task.environments)
        self.generator = UNetGenerator(channels, widths, options.adain, options.output)
        self.average = averaged_copy(self.generator)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.critic = build_tapped_encoder(options.encoder, channels, size)
        self.critic_heads = nn.Linear(seen, task.environments)

    def stages(self, steps: int) -> tuple[Stage, ...]:
        """The encoder; then critic and generator in turn, with the encoder frozen."""
        options = self.options
        learned = nn.ModuleList([self.encoder, self.label_head, self.environment_head])
        encode = self.phase("encode", learned.parameters(), self._encoder_losses, validates=True)
        return (
            Stage("encoder", steps, (encode,)),
            Stage(
                "transfer",
                options.transfer_steps,
                (
                    self._turn("critic", [self.critic, self.critic_heads], self._critic_losses),
                    self._turn("generator", [self.generator], self._generator_losses),
                ),
                batch_size=options.transfer_batch_size,
                validation_batches=10,
                classifies=False,
                draws="label",
                partner="environment",
                selects=False,
            ),
        )

    def begin(self, stage: Stage) -> None:
        """Copy the encoder to the critic, and the generator to its average."""
        if stage.name == "transfer":
            self.critic.load_state_dict(self.encoder.state_dict())
            self.critic_heads.load_state_dict(self.environment_head.state_dict())
            self.average.load_state_dict(self.generator.state_dict())
            self.updates.zero_()

    def step(
        self, batch: Batch, stage: Stage, optimizers: Optimizers, backward: Backward
    ) -> Tensors:
        """Every phase in order; then the averaged weights move towards the generator's."""
        logged = super().step(batch, stage, optimizers, backward)
        if stage.name == "transfer":
            self.updates += 1
            decay = early_decay(self.options.average_decay, int(self.updates))
            update_average(self.average, self.generator, decay)
        return logged

    def embed(self, image: Tensor) -> Tensors:
        """(B, C, H, W) to "representation" (B, features)."""
        return {"representation": self.encoder(image).pooled}

    def predict(self, embedded: Tensors) -> Tensor:
        """Logits (B, labels)."""
        logits: Tensor = self.label_head(embedded["representation"])
        return logits

    def style(self, image: Tensor, environment: Tensor) -> Tensor:
        """Style codes (B, S) of images (B, C, H, W), from pixels and maps alone: eq. 1."""
        del environment
        return style_code(image, self.encoder(image).taps)

    def relative_style(self, own: Tensor, source: Tensor, target: Tensor) -> Tensor:
        """`relative_code`; not in the paper."""
        return relative_code(own, source, target, (self.channels, *self.encoder.widths))

    def impute(self, image: Tensor, style: Tensor) -> Tensor:
        """The images (B, C, H, W) in the styles (B, S), by the averaged generator: float32."""
        drawn: Tensor = self.average(image, self.encoder(image).taps, style)
        return drawn.float()

    def outputs(self, batch: Batch, stage: str) -> Tensors:
        """In the stage "encoder" the inputs of its heads; in "transfer" images and their maps.

        "content" and "style" (P, C, H, W) are pairs, "environment" (P,) belongs to the style, and
        "drawn" (P, C, H, W) is the content in that style; the maps are "content_0", "style_0" …
        """
        if stage == "encoder":
            features = self.encoder(batch.image)
            seen = _seen(batch.image, features)
            return {"representation": features.pooled, "seen": seen}
        self.encoder.eval()
        content, style, environment = _pairs(batch)
        with torch.no_grad():
            features = self.encoder(content)
            style_features = self.encoder(style)
            code = style_code(style, style_features.taps)
        drawn = self.generator(content, features.taps, code)
        found = {"content": content, "style": style, "environment": environment, "drawn": drawn}
        found["representation"] = features.pooled
        found |= {f"content_{layer}": tap for layer, tap in enumerate(features.taps)}
        return found | {f"style_{layer}": tap for layer, tap in enumerate(style_features.taps)}

    def _turn(self, name: str, modules: list[nn.Module], losses: Objective) -> Phase:
        parameters, rate = nn.ModuleList(modules).parameters(), self.options.transfer_learning_rate
        validates, decay = name == "generator", self.options.transfer_weight_decay
        phase = self.phase(name, parameters, losses, learning_rate=rate, validates=validates)
        return replace(phase, weight_decay=decay, rule="adam", betas=BETAS)

    def _encoder_losses(self, batch: Batch, outputs: Tensors) -> dict[str, Loss]:
        environment = cross_entropy(self.environment_head(outputs["seen"]), batch.environment)
        return {
            "cross_entropy": Loss(cross_entropy(self.predict(outputs), batch.label)),
            "environment": Loss(environment),
        }

    def _critic_losses(self, batch: Batch, outputs: Tensors) -> dict[str, Loss]:
        del batch
        environment = outputs["environment"]
        real = outputs["style"].detach().requires_grad_()
        of_real = self._criticised(self.critic, self.critic_heads, real, environment)
        drawn = outputs["drawn"].detach()
        of_drawn = self._criticised(self.critic, self.critic_heads, drawn, environment)
        return {
            "critic_real": Loss(real_loss(of_real)),
            "critic_fake": Loss(fake_loss(of_drawn)),
            "r1": Loss(r1_penalty(of_real, real), self.options.r1_weight),
        }

    def _generator_losses(self, batch: Batch, outputs: Tensors) -> dict[str, Loss]:
        """Eq. 7, through a constant critic and the frozen encoder."""
        del batch
        options = self.options
        content, drawn = outputs["content"], outputs["drawn"]
        of_content, of_style = _taps(outputs, "content"), _taps(outputs, "style")
        features: Features = constant(self.encoder)(drawn)
        own_style = style_code(content, of_content)
        again = self.generator(drawn, features.taps, own_style)
        of_drawn = self._criticised(
            constant(self.critic), constant(self.critic_heads), drawn, outputs["environment"]
        )
        label = constant(self.label_head)
        matching = class_matching(label(features.pooled), label(outputs["representation"]))
        content_maps = content_distance(features.taps, of_content)
        return {
            "adversarial": Loss(real_loss(of_drawn), options.adversarial_weight),
            "style": Loss(style_loss(features.taps, of_style), options.style_weight),
            "cycle": Loss(pixel_distance(again, content), options.cycle_weight),
            "content": Loss(pixel_distance(drawn, content), options.content_weight),
            "content_maps": Loss(content_maps, options.content_map_weight),
            "match": Loss(matching, options.match_weight),
        }

    @staticmethod
    def _criticised(
        critic: Callable[[Tensor], Features],
        heads: Callable[[Tensor], Tensor],
        image: Tensor,
        environment: Tensor,
    ) -> Tensor:
        """(known,) the logits for "real", by the head of each known environment."""
        logits = heads(_seen(image, critic(image)))
        known = environment >= 0
        return logits[known].gather(1, environment[known, None]).squeeze(1)


def _pairs(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of content images and style images, and the environments of the style images.

    Style images are the batch's partners; without partners, the row before each row.
    """
    if batch.partners == 0:
        return batch.image, batch.image.roll(1, 0), batch.environment.roll(1, 0)
    own = len(batch) - batch.partners
    return batch.image[:own], batch.image[own:], batch.environment[own:]


def _seen(image: Tensor, features: Features) -> Tensor:
    """Input of the environment heads, (B, features + S); the style holds the gain of an image."""
    return torch.cat([features.pooled, style_code(image, features.taps)], dim=1)


def _taps(outputs: Tensors, of: str) -> list[Tensor]:
    count = sum(name.startswith(f"{of}_") for name in outputs)
    return [outputs[f"{of}_{layer}"] for layer in range(count)]
