"""IST: a generator redraws images as if they had been taken in another environment."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError
from torch import Tensor, nn

from deconfound.data.loading.batch import Batch
from deconfound.data.loading.pairs import pairs
from deconfound.data.loading.standardisation import image_quantiles
from deconfound.losses.gather import gather_rows
from deconfound.losses.generated import (
    class_matching,
    content_distance,
    fake_loss,
    mean_style_loss,
    pixel_distance,
    r1_penalty,
    real_loss,
    spread_loss,
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
    gram,
    head_input,
    relative_code,
    style_code,
)
from deconfound.nets.set_style import SetStyles
from deconfound.nets.weights import averaged_copy, constant, early_decay, update_average

BETAS = (0.0, 0.99)
OF_SETS = {"set_images": 1, "source_weight": 0.0}
"""Options of the form `set` alone, as the form `paper` always has them."""
OF_IMAGES = {"cycle_weight": 0.0, "match_weight": 0.0}
"""Options of the form `paper` alone, as the form `set` always has them."""


class IstOptions(MethodOptions):
    """Options of IST."""

    FORMS: ClassVar[dict[str, dict[str, Any]]] = {
        "set": {"output": "residual", "set_images": 8, "source_weight": 1.0} | OF_IMAGES,
        "paper": {"output": "matched", "cycle_weight": 1.0, "match_weight": 1.0} | OF_SETS,
    }

    form: Literal["set", "paper"] = "set"
    """set: styles are those of an environment's images together, a closed form brings images to
    them, the generator changes the rest. paper: as published, a style is that of one image."""
    encoder: TappedName = "small"
    """small, or resnet18 for images of 33 px and more."""
    adain: AdaIN = "direct"
    """How the style sets the mean and sd of a map: direct, to those of the style image's map;
    affine, to a linear function of those."""
    output: Output = "residual"
    """What the generator draws: the image (linear), a change of the content image (residual), or a
    change of the content image whose channels have the style's mean and sd (matched, and the
    default of the form paper). In the form set the content image was brought to the style first."""
    set_images: int = Field(8, ge=1)
    """Images of an environment that make up a style in training (paper: 1)."""
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
    source_weight: float = Field(1.0, ge=0)
    """Weight of an adversary that reads from drawn images where they were taken (form set)."""
    cycle_weight: float = Field(0.0, ge=0)
    """Weight (paper: 1) of the distance between the content image and the image redrawn in its own
    style; of the form paper."""
    content_weight: float = Field(10.0, ge=0)
    """Weight of the distance to the content image in pixels."""
    content_map_weight: float = Field(1.0, ge=0)
    """Weight of the distance to the content image in normalised maps of the encoder."""
    match_weight: float = Field(0.0, ge=0)
    """Weight (paper: 1) of the distance to the encoder's prediction for the content image, which
    defends what the encoder learned of the environment; of the form paper."""
    r1_weight: float = Field(1.0, ge=0)
    """Weight of the critic's squared gradient at real images."""
    average_decay: float = Field(0.999, ge=0, lt=1)
    """Decay of the averaged generator weights, which impute."""

    @model_validator(mode="before")
    @classmethod
    def _with_its_form(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        if "form" not in given and "output" in given:  # a run of a build without forms
            given = given | {"form": "paper"}
        form = given.get("form", "set")
        return {"form": form} | cls.FORMS.get(form, {}) | given

    @model_validator(mode="after")
    def _of_its_form(self) -> Self:
        other, always = ("set", OF_SETS) if self.form == "paper" else ("paper", OF_IMAGES)
        for name, value in always.items():
            if getattr(self, name) != value:
                raise PydanticCustomError(
                    "form",
                    "{name} belongs to the form {other}, and the form is {form}; leave it out",
                    {"name": name, "other": other, "form": self.form},
                )
        return self

    @property
    def of_sets(self) -> bool:
        """In the form `set`."""
        return self.form == "set"


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

    All this is the form `paper`. The form `set`, ours and the default, brings images to the style
    in closed form (`SetStyles`), and the generator changes what it returns. Styles are the means of
    sets, and relative; Gram matrices are compared with their environment's mean, and content with
    the image after the closed form; an adversary that reads the source from drawn images takes the
    place of cycle and match, which favour images that keep theirs.
    """

    Options = IstOptions
    options: IstOptions
    SUMMARY = "redraws images in the style of other environments, for predictors to train on"
    PAPER = "Pernice et al., Interventional Style Transfer, 2023, eq. 7"
    ENVIRONMENTS = 2
    RELATIVE = True

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
        self.paper = options.form == "paper"
        if not self.paper:
            self.source_head = nn.Linear(seen, task.environments)
            self.sets = SetStyles(channels, widths, task.environments)

    def stages(self, steps: int) -> tuple[Stage, ...]:
        """The encoder; then critic and generator in turn, with the encoder frozen."""
        options = self.options
        learned = nn.ModuleList([self.encoder, self.label_head, self.environment_head])
        encode = self.phase("encode", learned.parameters(), self._encoder_losses, validates=True)
        judges: list[nn.Module] = [self.critic, self.critic_heads]
        if not self.paper:
            judges.append(self.source_head)
        return (
            Stage("encoder", steps, (encode,)),
            Stage(
                "transfer",
                options.transfer_steps,
                (
                    self._turn("critic", judges, self._critic_losses),
                    self._turn("generator", [self.generator], self._generator_losses),
                ),
                batch_size=options.transfer_batch_size,
                validation_batches=10,
                classifies=False,
                draws="label",
                partner="environment",
                partner_draws=options.set_images,
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
        """Styles (B, S) of images (B, C, H, W), from pixels and maps: eq. 1, or `SetStyles`."""
        del environment
        taps = self.encoder(image).taps
        found: Tensor = style_code(image, taps) if self.paper else self.sets(image, taps)
        return found

    def impute(self, image: Tensor, style: Tensor, source: Tensor | None = None) -> Tensor:
        """The images (B, C, H, W) in the styles (B, S), by the averaged generator: float32."""
        if source is not None:
            own = self.style(image, source)
            if self.paper:
                layers = (self.channels, *self.encoder.widths)
                style = relative_code(own, own.where(source.isnan(), source), style, layers)
            else:
                image, style = self.sets.transfer(image, style, own, source)
        elif not self.paper:
            image, style = self.sets.toned(image, style)
        drawn: Tensor = self.average(image, self.encoder(image).taps, style)
        return drawn.float()

    def outputs(self, batch: Batch, stage: str) -> Tensors:
        """In the stage "encoder" the inputs of its heads; in "transfer" images and their maps.

        "content" and "style" (P, C, H, W) are pairs, "environment" (P,) belongs to the style, and
        "drawn" (P, C, H, W) is the content in that style; the maps are "content_0", "style_0" …
        """
        if stage == "encoder":
            if self.training and not self.paper:
                tones = image_quantiles(batch.image.float())
                self.sets.count_tones(gather_rows(tones))
            features = self.encoder(batch.image)
            seen = head_input(batch.image, features)
            return {"representation": features.pooled, "seen": seen}
        self.encoder.eval()
        with torch.no_grad():
            found = self._image_styles(batch) if self.paper else self._set_styles(batch)
            features = self.encoder(found["content"])
        drawn = self.generator(found["content"], features.taps, found["code"])
        found |= {"drawn": drawn, "representation": features.pooled}
        return found | _named("content", features.taps)

    def _image_styles(self, batch: Batch) -> Tensors:
        """The style of one image for each content image."""
        content, _, style, environment, _ = pairs(batch)
        taps = self.encoder(style).taps
        found = {"content": content, "style": style, "environment": environment}
        return found | {"code": style_code(style, taps)} | _named("style", taps)

    def _set_styles(self, batch: Batch) -> Tensors:
        """The style of a set for each content image, which is brought to that style.

        Controls, or all images without any, make up the mean styles and Gram matrices.
        """
        content, source, style, taken_in, label = pairs(batch)
        rows, taps = len(content), self.encoder(style).taps
        styles = self.sets(style, taps)
        if self.training:
            counted = gather_rows(taken_in)
            if self.task.controls:
                controls = counted.new_tensor(self.task.controls)
                counted = counted.where(torch.isin(gather_rows(label), controls), -1)
            grams = [gather_rows(gram(tap)) for tap in taps]
            self.sets.count(counted, gather_rows(styles), grams)
        target, environment = styles.unflatten(0, (-1, rows)).mean(dim=0), taken_in[:rows]
        own = self.style(content, source)
        from_style = self.sets.styles.of(source, torch.full_like(own, torch.nan))
        content, code = self.sets.transfer(content, target, own, from_style)
        found = {"content": content, "style": style[:rows], "environment": environment}
        grams = self.sets.mean_grams(environment, [tap[:rows] for tap in taps])
        return found | {"code": code, "source": source} | _named("gram", grams)

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
        seen = head_input(drawn, self.critic(drawn))
        of_drawn = _own_heads(self.critic_heads(seen), environment)
        read = {}
        if not self.paper:
            read["source_read"] = Loss(cross_entropy(self.source_head(seen), outputs["source"]))
        return read | {
            "critic_real": Loss(real_loss(of_real)),
            "critic_fake": Loss(fake_loss(of_drawn)),
            "r1": Loss(r1_penalty(of_real, real), self.options.r1_weight),
        }

    def _generator_losses(self, batch: Batch, outputs: Tensors) -> dict[str, Loss]:
        """Through a constant critic and the frozen encoder."""
        del batch
        return self._image_losses(outputs) if self.paper else self._set_losses(outputs)

    def _image_losses(self, outputs: Tensors) -> dict[str, Loss]:
        """Eq. 7."""
        options = self.options
        content, drawn = outputs["content"], outputs["drawn"]
        of_content, of_style = _taps(outputs, "content"), _taps(outputs, "style")
        features: Features = constant(self.encoder)(drawn)
        again = self.generator(drawn, features.taps, style_code(content, of_content))
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

    def _set_losses(self, outputs: Tensors) -> dict[str, Loss]:
        """Style against the environment's mean, content against the closed form, and the source."""
        options = self.options
        content, drawn = outputs["content"], outputs["drawn"]
        features: Features = constant(self.encoder)(drawn)
        seen = head_input(drawn, constant(self.critic)(drawn))
        of_drawn = _own_heads(constant(self.critic_heads)(seen), outputs["environment"])
        read = constant(self.source_head)(seen)
        style = mean_style_loss(features.taps, _taps(outputs, "gram"))
        content_maps = content_distance(features.taps, _taps(outputs, "content"))
        return {
            "adversarial": Loss(real_loss(of_drawn), options.adversarial_weight),
            "style": Loss(style, options.style_weight),
            "source": Loss(spread_loss(read), options.source_weight),
            "content": Loss(pixel_distance(drawn, content), options.content_weight),
            "content_maps": Loss(content_maps, options.content_map_weight),
        }

    @staticmethod
    def _criticised(
        critic: Callable[[Tensor], Features],
        heads: Callable[[Tensor], Tensor],
        image: Tensor,
        environment: Tensor,
    ) -> Tensor:
        """(known,) the logits for "real", by the head of each known environment."""
        return _own_heads(heads(head_input(image, critic(image))), environment)


def _own_heads(logits: Tensor, environment: Tensor) -> Tensor:
    """(known,) the logit of each known environment's own head, of (B, environments)."""
    known = environment >= 0
    return logits[known].gather(1, environment[known, None]).squeeze(1)


def _named(of: str, maps: Sequence[Tensor]) -> Tensors:
    return {f"{of}_{layer}": map for layer, map in enumerate(maps)}


def _taps(outputs: Tensors, of: str) -> list[Tensor]:
    count = sum(name.startswith(f"{of}_") for name in outputs)
    return [outputs[f"{of}_{layer}"] for layer in range(count)]
