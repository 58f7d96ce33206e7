"""DANN: an encoder from which a discriminator cannot tell the environment."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from deconfound.data.loading.batch import Batch
from deconfound.errors import UserError
from deconfound.losses.risk import cross_entropy, gradient_penalty
from deconfound.methods.contract import (
    Backward,
    Loss,
    OptimizerName,
    Optimizers,
    Phase,
    Stage,
    Task,
    Tensors,
    weighted_sum,
)
from deconfound.methods.erm import Erm, ErmOptions
from deconfound.nets.weights import constant

ALTERNATING_BETAS = (0.5, 0.9)
SHARPNESS = 10.0
"""How fast a sigmoid schedule rises: gamma of Ganin et al., section 5.2."""
WIDTHS = {"alternating": 256, "reversal": 1024}


class DannOptions(ErmOptions):
    """Options of DANN."""

    optimizer: OptimizerName = "adam"
    """adamw, adam or sgd; alternating steps decay Adam's averages by 0.5 and 0.9."""
    weight_decay: float = Field(0.0, ge=0)
    """Weight decay of the optimizers."""
    form: Literal["alternating", "reversal"] = "alternating"
    """alternating: steps of the discriminator and of the rest take turns (DomainBed); reversal:
    all step at once, the encoder by the reversed gradient (WILDS, and "DR" of Pernice et al.)."""
    adversarial_weight: float = Field(1.0, ge=0)
    """Weight lambda of the discriminator's loss in the encoder's objective (Pernice et al.:
    0.0625; WILDS on Camelyon17: 0.1)."""
    adversarial_schedule: Literal["constant", "sigmoid"] = Field(
        "constant", exclude_if=lambda given: given == "constant"
    )
    """sigmoid: at the share p of the steps lambda is 2 / (1 + exp(-10 p)) - 1 of its weight (Ganin
    et al.); constant in DomainBed and WILDS."""
    weigh_discriminator: bool = Field(False, exclude_if=lambda given: not given)
    """Reversal: the weight multiplies the discriminator's own loss too, as in WILDS; Adam hardly
    notices, sgd does."""
    discriminator_steps: int = Field(1, ge=1)
    """Alternating: steps of the discriminator for each step of the rest."""
    discriminator_width: int | None = Field(None, ge=1)
    """Width of the discriminator's hidden layers; if not given 256, or 1024 with reversal."""
    discriminator_gradient_penalty: float = Field(0.0, ge=0)
    """Alternating: weight of the squared gradient of the discriminator's loss in its input."""
    discriminator_learning_rate: float | None = Field(None, gt=0)
    """Learning rate of the discriminator; --learning-rate if not given (WILDS on Camelyon17: 0.001,
    the encoder's 0.0001)."""
    head_learning_rate: float | None = Field(None, gt=0)
    """Learning rate of the label's head; --learning-rate if not given (WILDS on Camelyon17:
    0.001)."""


class Dann(Erm):
    """Domain-adversarial training between the training environments.

    Ganin et al., Domain-Adversarial Training of Neural Networks, 2016: the encoder minimises
    CE(label) − lambda · CE(environment), its discriminator CE(environment). "representation" is the
    encoder's output r. Two forms: `alternating` as in DomainBed (Gulrajani and Lopez-Paz, 2021; a
    step is the discriminator's if the count, with this step, mod (1 + d) is less than d) and
    `reversal` as in WILDS (Koh et al., 2021), a baseline of Pernice et al., section 5.2.

    Encoder, head and discriminator have an optimizer each. The reversed gradient is computed
    through a constant discriminator, with the same result. Deviation: no bias before a batch norm,
    which would undo it.
    """

    Options = DannOptions
    options: DannOptions
    SUMMARY = "an encoder from which a discriminator cannot tell the environment"
    PAPER = "Ganin et al., Domain-Adversarial Training of Neural Networks, 2016"
    ENVIRONMENTS = 2

    count: Tensor
    """() int64: steps begun, where turns or the schedule depend on it; saved with the weights."""

    def __init__(self, options: DannOptions, task: Task) -> None:
        super().__init__(options, task)
        if not any(one.requires_grad for one in self.encoder.parameters()):
            raise UserError(
                "dann trains its encoder against a discriminator, and this encoder is frozen; use "
                "--tune lora or full, or another method"
            )
        _refuse_options_of_the_other_form(options)
        alternates = options.form == "alternating"
        width = options.discriminator_width or WIDTHS[options.form]
        self.discriminator = nn.Sequential(
            *_hidden(self.encoder.features, width, alternates),
            *_hidden(width, width, alternates),
            nn.Linear(width, task.environments),
        )
        self._steps = 1
        if alternates or options.adversarial_schedule == "sigmoid":
            self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def stages(self, steps: int) -> tuple[Stage, ...]:
        """One stage: the discriminator, the encoder and the head."""
        options, self._steps = self.options, steps
        phases: tuple[Phase, ...] = (
            self.phase(
                "discriminator",
                self.discriminator.parameters(),
                self._discriminator_losses,
                learning_rate=options.discriminator_learning_rate,
            ),
            self.phase("encoder", self.encoder.parameters(), self._encoder_losses),
            self.phase(
                "head",
                self.head.parameters(),
                self._head_losses,
                learning_rate=options.head_learning_rate,
                validates=True,
            ),
        )
        if options.form == "alternating":
            phases = tuple(replace(phase, betas=ALTERNATING_BETAS) for phase in phases)
        return (Stage("adversarial", steps, phases),)

    def step(
        self, batch: Batch, stage: Stage, optimizers: Optimizers, backward: Backward
    ) -> Tensors:
        """Step the phases whose turn it is, from gradients at the same weights; logs every loss."""
        if "count" in self._buffers:
            self.count += 1
        taking_turns = self._turn()
        outputs = self.outputs(batch, stage.name)
        logged: Tensors = {}
        stepping: list[torch.optim.Optimizer] = []
        totals: list[tuple[Tensor, Phase]] = []
        for phase, optimizer in zip(stage.phases, optimizers, strict=True):
            its_turn = phase.name in taking_turns
            with torch.set_grad_enabled(its_turn):
                losses = phase.losses(batch, outputs)
            logged |= {name: loss.value.detach() for name, loss in losses.items()}
            if its_turn:
                totals.append((weighted_sum(losses), phase))
                stepping.append(optimizer)
        for optimizer in stepping:
            optimizer.zero_grad(set_to_none=True)
        for total, phase in totals:
            backward(total, phase.parameters)
        for optimizer in stepping:
            optimizer.step()
        return logged

    def diagnostics(self, batch: Batch, outputs: Tensors) -> Tensors:
        """The discriminator's loss: log K where it cannot tell the K environments apart."""
        logits = self.discriminator(outputs["representation"])
        return {"discriminator": cross_entropy(logits, batch.environment)}

    def _turn(self) -> set[str]:
        if self.options.form == "reversal":
            return {"discriminator", "encoder", "head"}
        steps = self.options.discriminator_steps
        return {"discriminator"} if int(self.count) % (1 + steps) < steps else {"encoder", "head"}

    def _discriminator_losses(self, batch: Batch, outputs: Tensors) -> dict[str, Loss]:
        representation = outputs["representation"].detach()
        options = self.options
        weight = options.adversarial_weight if options.weigh_discriminator else 1.0
        return self._told_apart(self.discriminator, representation, batch, weight)

    def _encoder_losses(self, batch: Batch, outputs: Tensors) -> dict[str, Loss]:
        representation = outputs["representation"]
        label = cross_entropy(constant(self.head)(representation), batch.label)
        against = self._told_apart(
            constant(self.discriminator), representation, batch, -self._adversarial_weight()
        )
        return {"cross_entropy": Loss(label), **against}

    def _adversarial_weight(self) -> float:
        """Lambda in this step."""
        weight = self.options.adversarial_weight
        if self.options.adversarial_schedule == "constant":
            return weight
        share = max(0, int(self.count) - 1) / self._steps
        return weight * (2 / (1 + math.exp(-SHARPNESS * share)) - 1)

    def _head_losses(self, batch: Batch, outputs: Tensors) -> dict[str, Loss]:
        logits = self.head(outputs["representation"].detach())
        return {"cross_entropy": Loss(cross_entropy(logits, batch.label))}

    def _told_apart(
        self, discriminator: Callable[[Tensor], Tensor], representation: Tensor, batch: Batch,
        weight: float,
    ) -> dict[str, Loss]:  # fmt: skip
        """The discriminator's objective, times `weight`."""
        loss = cross_entropy(discriminator(representation), batch.environment)
        losses = {"discriminator": Loss(loss, weight)}
        if penalty_weight := self.options.discriminator_gradient_penalty:
            penalty = gradient_penalty(discriminator, representation, batch.environment)
            losses["gradient_penalty"] = Loss(penalty, weight * penalty_weight)
        return losses


def _refuse_options_of_the_other_form(options: DannOptions) -> None:
    if options.form == "alternating" and options.weigh_discriminator:
        raise UserError(
            "--weigh-discriminator belongs to --form reversal; leave it out with alternating"
        )
    given = {
        "--discriminator-steps": options.discriminator_steps != 1,
        "--discriminator-gradient-penalty": options.discriminator_gradient_penalty != 0,
    }
    for flag, is_given in given.items():
        if options.form == "reversal" and is_given:
            raise UserError(f"{flag} belongs to --form alternating; leave it out with reversal")


def _hidden(inputs: int, outputs: int, alternates: bool) -> list[nn.Module]:
    if alternates:
        return [nn.Linear(inputs, outputs), nn.ReLU()]
    return [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU()]
