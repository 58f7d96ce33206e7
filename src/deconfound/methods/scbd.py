"""SCBD: a content block that ignores the environment and a style block that follows it."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from deconfound.data.loading.batch import Batch
from deconfound.errors import UserError
from deconfound.losses.contrastive import check_given, content_losses, supervised_contrastive
from deconfound.losses.gather import gather_rows, global_mean
from deconfound.losses.risk import cross_entropy
from deconfound.methods.contract import Dial, Loss, Method, PretrainedOptions, Stage, Task, Tensors
from deconfound.methods.contract.options import WeightOrAuto
from deconfound.nets.decoder import (
    AdditiveDecoder,
    BernoulliLikelihood,
    GaussianLikelihood,
    decoder_size,
    resized,
)
from deconfound.nets.encoder import Encoder, Norm, Projection
from deconfound.nets.pretrained import build_pretrained

ALPHAS = {
    "balanced": (0.0, 1.0, 3.0, 10.0), "label": (0.0, 0.3, 1.0, 3.0),
    "listing": (0.0, 8.0, 64.0, 192.0),
}  # fmt: skip
"""What --alpha auto tries, by the form of the invariance; that of equation follows the batch."""


class ScbdOptions(PretrainedOptions):
    """Options of SCBD."""

    alpha: WeightOrAuto = 1.0
    """Weight of the invariance loss, the dial between plate and perturbation; auto tries some."""
    invariance: Literal["balanced", "listing", "equation"] = "balanced"
    """Form of the invariance loss: balanced (mean over positives minus mean over negatives),
    listing (the paper's appendix; its alpha of 192 belongs to it) or equation (its text)."""
    invariance_given: Literal["none", "label"] = Field("none", exclude_if=lambda it: it == "none")
    """label: environments are compared within each label alone; none: over all, as in the paper."""
    cross_environment_weight: float = Field(
        1.0, ge=1, allow_inf_nan=False, exclude_if=lambda given: given == 1
    )
    """Weight of a positive of another environment in the content's contrastive loss, against 1 of
    one of the same environment; 1 as in the paper."""
    label_weight: float = Field(0.0, ge=0, allow_inf_nan=False, exclude_if=lambda given: given == 0)
    """Weight of the label's cross-entropy on r_c in the encoders' objective; 0 as in the paper,
    where the linear probe that predicts the label never trains the encoder."""
    temperature: float = Field(0.1, gt=0)
    """Temperature of the contrastive losses."""
    include_self: bool = True
    """Whether the softmax denominator holds the anchor itself (listing: yes; text: no)."""
    style_target: Literal["environment", "pair"] = "environment"
    """What the style block follows: the environment, or the pair (label, environment)."""
    encoder: str = "small"
    """Content encoder: small, resnet18, densenet121, timm:NAME or torch:FILE, an exported program;
    for profiles mlp, which small also selects."""
    style_encoder: str | None = None
    """Style encoder; the same network as the content encoder if not given. Options of pretrained
    weights are for the content encoder, and for one of the same name."""
    norm: Norm = "batch"
    """Normalisation in the encoders: batch, instance, group or none."""
    block_size: int = Field(128, ge=1)
    """Dimensions of z_c and of z_s."""
    style_block: bool = True
    """Whether there is a style block; without it there is no decoder either."""
    decoder: Literal["after", "beside", "joint", "none"] | None = None
    """When the decoder is fitted: after the encoders, beside them as in the paper, jointly with
    them, so that it trains them (joint), or never (none). If not given: after for images, none
    without a style block and for profiles, which it cannot draw."""
    decoder_weight: float = Field(1.0, ge=0)
    """Weight of the reconstruction in the encoders' objective when the decoder is joint."""
    decoder_steps: int = Field(300, ge=1)
    """Steps of the decoder when it is fitted after the encoders."""
    decoder_batch_size: int = Field(64, ge=1)
    """Images in a batch of the decoder when it is fitted after the encoders."""
    decoder_width: int = Field(32, ge=2)
    """Width of the decoder; 256 is the paper's."""
    likelihood: Literal["gaussian", "bernoulli"] = "gaussian"
    """Pixel likelihood; bernoulli needs --scaling unit."""
    decoder_learning_rate: float = Field(3e-3, gt=0)
    """Learning rate of the decoder (paper: 1e-4); a joint one learns at the encoders' rate."""
    probe_learning_rate: float = Field(1e-2, gt=0)
    """Learning rate of the linear probes (paper: 1e-4, over 25,000 steps)."""

    @property
    def dial(self) -> Dial | None:
        """Alpha, if it is `auto`."""
        form = "label" if self.invariance_given == "label" else self.invariance
        return Dial("alpha", ALPHAS.get(form, ())) if self.alpha == "auto" else None

    @property
    def of_trials(self) -> "ScbdOptions":
        """The options without a decoder, unless it trains the encoders."""
        return self if self.decoder == "joint" else self.model_copy(update={"decoder": "none"})


class Scbd(Method):
    """Supervised Contrastive Block Disentanglement.

    Makino et al., SCBD, eq. 1: SupCon(z_c, y) + SupCon(z_s, e) + alpha · invariance(z_c, e), with
    an additive decoder and linear probes that never train the encoders. "representation" is r_c,
    from which the label is read, "content" z_c, "style" z_s. Deviations, all options: the
    `balanced` invariance, the decoder fitted after the encoders, a smaller network, cross-entropy
    beside the contrastive loss. Ablations, options too: no style block, a decoder that trains the
    encoders.
    """

    Options = ScbdOptions
    options: ScbdOptions
    SUMMARY = "two contrastive blocks: z_c follows the label and ignores the environment"
    PAPER = "Makino et al., Supervised Contrastive Block Disentanglement, eq. 1"
    ENVIRONMENTS = 2
    POSITIVES = True

    def __init__(self, options: ScbdOptions, task: Task) -> None:
        super().__init__(options, task)
        _refuse_missing_parts(options, task)

        def encoder(name: str) -> Encoder:
            how = options.pretrained(task.unit_pixels) if name == options.encoder else None
            return build_pretrained(name, task.channels, task.image_size, options.norm, how)

        content = encoder(options.encoder)
        style = encoder(options.style_encoder or options.encoder) if options.style_block else None
        size = options.block_size
        self.content_encoder, self.style_encoder = content, style
        self.content_projection = Projection(content.features, size)
        self.style_projection = None if style is None else Projection(style.features, size)
        self.label_probe = nn.Linear(content.features, task.labels)
        probed = {"representation": content.features, "content": size}
        probed |= {} if style is None else {"style": size}
        self.environment_probes = nn.ModuleDict(
            {name: nn.Linear(features, task.environments) for name, features in probed.items()}
        )
        self.decoder: AdditiveDecoder | None = None
        if task.image_size is not None and style is not None and options.decoder != "none":
            self.side = decoder_size(task.image_size)
            self.decoder = AdditiveDecoder(
                size, size, task.channels, self.side, options.decoder_width
            )
        self.likelihood = (
            BernoulliLikelihood() if options.likelihood == "bernoulli" else GaussianLikelihood()
        )

    def stages(self, steps: int) -> tuple[Stage, ...]:
        """Encoders and probes, with a decoder beside or joint; then the decoder, if after."""
        options = self.options
        blocks: list[nn.Module | None] = [
            self.content_encoder,
            self.content_projection,
            self.style_encoder,
            self.style_projection,
            self.label_probe if options.label_weight else None,
        ]
        joint = self.decoder is not None and options.decoder == "joint"
        blocks += [self.decoder, self.likelihood] if joint else []
        contrast = self.phase(
            "contrast",
            [p for block in blocks if block is not None for p in block.parameters()],
            self._joint_objective if joint else self._contrast,
            validates=True,
        )
        probed = [self.environment_probes, *([] if options.label_weight else [self.label_probe])]
        probes = self.phase(
            "probes",
            [p for probe in probed for p in probe.parameters()],
            self._probes,
            learning_rate=options.probe_learning_rate,
        )
        if self.decoder is None or joint:
            return (Stage("encoders", steps, (contrast, probes)),)
        reconstruct = self.phase(
            "reconstruct",
            [*self.decoder.parameters(), *self.likelihood.parameters()],
            self._detached_reconstruction,
            learning_rate=options.decoder_learning_rate,
            validates=options.decoder != "beside",
        )
        if options.decoder == "beside":
            return (Stage("encoders", steps, (contrast, probes, reconstruct)),)
        decoder_stage = Stage(
            "decoder",
            options.decoder_steps,
            (reconstruct,),
            batch_size=options.decoder_batch_size,
            validation_batches=10,
            classifies=False,
        )
        return (Stage("encoders", steps, (contrast, probes)), decoder_stage)

    def embed(self, image: Tensor) -> Tensors:
        """Images or profiles to "representation" r_c, "content" z_c, "style" z_s; z of unit norm.

        (B, C, H, W) or (B, features) to (B, D) each; no "style" without a style block.
        """
        representation = self.content_encoder(image)
        content = self.content_projection(representation)
        blocks: Tensors = {"representation": representation, "content": content}
        if self.style_encoder is not None and self.style_projection is not None:
            blocks["style"] = self.style_projection(self.style_encoder(image))
        return blocks

    def outputs(self, batch: Batch, stage: str) -> Tensors:
        """The blocks; in the decoder's stage, of encoders in evaluation mode, without gradients."""
        if stage == "encoders":
            return self.embed(batch.image)
        for encoder in (self.content_encoder, self.style_encoder):
            if encoder is not None:
                encoder.eval()
        with torch.no_grad():
            return self.embed(batch.image)

    def predict(self, embedded: Tensors) -> Tensor:
        """Logits (B, labels) of the linear probe trained alongside on r_c."""
        logits: Tensor = self.label_probe(embedded["representation"])
        return logits

    def swap(self, content: Tensor, style: Tensor) -> Tensor | None:
        """Images of content z_c (B, D) in style z_s (B, D), in the units the networks see."""
        if self.decoder is None:
            return None
        mean: Tensor = self.likelihood.mean(self.decoder(content, style))
        return mean

    def diagnostics(self, batch: Batch, outputs: Tensors) -> Tensors:
        """Length of the mean of z_c: 1 where the block has collapsed to a point."""
        del batch
        content = gather_rows(outputs["content"].float())
        return {"content_resultant_length": content.mean(dim=0).norm()}

    def _contrast(self, batch: Batch, outputs: Tensors) -> dict[str, Loss]:
        supcon, invariance = content_losses(
            outputs["content"],
            batch.label,
            batch.environment,
            temperature=self.options.temperature,
            reduction=self.options.invariance,
            include_self=self.options.include_self,
            given=self.options.invariance_given,
            cross_environment_weight=self.options.cross_environment_weight,
        )
        losses = {"supcon_content": Loss(supcon)}
        if "style" in outputs:
            losses["supcon_style"] = Loss(self._style_supcon(batch, outputs["style"]))
        if self.options.label_weight:
            label = cross_entropy(self.predict(outputs), batch.label)
            losses["label"] = Loss(label, self.options.label_weight)
        return {**losses, "invariance": Loss(invariance, float(self.options.alpha))}

    def _style_supcon(self, batch: Batch, style: Tensor) -> Tensor:
        target = batch.environment
        if self.options.style_target == "pair":
            pair = batch.label * self.task.environments + batch.environment
            target = pair.where((batch.label >= 0) & (batch.environment >= 0), -1)
        return supervised_contrastive(
            style, target, self.options.temperature, self.options.include_self
        )

    def _joint_objective(self, batch: Batch, outputs: Tensors) -> dict[str, Loss]:
        reconstruction = self._reconstruction(batch, outputs["content"], outputs["style"])
        weighted = Loss(reconstruction, self.options.decoder_weight)
        return {**self._contrast(batch, outputs), "reconstruction": weighted}

    def _probes(self, batch: Batch, outputs: Tensors) -> dict[str, Loss]:
        detached = {name: outputs[name].detach() for name in self.environment_probes}
        losses: dict[str, Loss] = {}
        if not self.options.label_weight:
            losses["label_probe"] = Loss(cross_entropy(self.predict(detached), batch.label))
        for name, probe in self.environment_probes.items():
            loss = cross_entropy(probe(detached[name]), batch.environment)
            losses[f"environment_probe_{name}"] = Loss(loss)
        return losses

    def _detached_reconstruction(self, batch: Batch, outputs: Tensors) -> dict[str, Loss]:
        content, style = outputs["content"].detach(), outputs["style"].detach()
        return {"reconstruction": Loss(self._reconstruction(batch, content, style))}

    def _reconstruction(self, batch: Batch, content: Tensor, style: Tensor) -> Tensor:
        assert self.decoder is not None
        target = self._target(batch.image)
        decoded = self.decoder(content, style)
        own_mean = self.likelihood.negative_log_likelihood(decoded.to(target.dtype), target)
        return global_mean(own_mean * len(batch), len(batch))

    def _target(self, image: Tensor) -> Tensor:
        if self.options.likelihood == "bernoulli" and (image.min() < 0 or image.max() > 1):
            raise UserError("--likelihood bernoulli needs pixels in [0, 1]; add --scaling unit")
        return resized(image, self.side)


def _refuse_missing_parts(options: ScbdOptions, task: Task) -> None:
    check_given(options.invariance_given, options.invariance)
    if task.image_size is None and options.decoder not in (None, "none"):
        raise UserError(
            f"--decoder {options.decoder} draws images, and the screen holds profiles; "
            "leave --decoder out"
        )
    if options.style_block:
        return
    for flag, value in (("decoder", options.decoder), ("style-encoder", options.style_encoder)):
        if value not in (None, "none"):
            raise UserError(
                f"--{flag} {value} needs the style block, and --no-style-block leaves it out; "
                "leave one of the two out"
            )
