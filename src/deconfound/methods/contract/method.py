"""What a trained method is: a network that declares its stages and losses, and embeds images."""

from collections.abc import Callable, Iterable
from typing import ClassVar

import torch
from torch import Tensor, nn

from deconfound.config import SamplerName
from deconfound.data.loading.batch import Batch
from deconfound.methods.contract.options import MethodOptions
from deconfound.methods.contract.records import Loss, Phase, Stage, Task, Tensors, weighted_sum


class Method(nn.Module):
    """A trained method; a file in the folder `methods` with one subclass is one, by its name.

    A subclass sets `Options`, `SUMMARY` and `PAPER`, and defines `stages` and `embed`. All else is
    optional.
    """

    Options: ClassVar[type[MethodOptions]] = MethodOptions
    SUMMARY: ClassVar[str]
    """One line for `deconfound methods`."""
    PAPER: ClassVar[str]
    """Authors, title, equation."""
    SAMPLER: ClassVar[SamplerName] = "plain"
    """How batches are drawn unless the user says otherwise."""
    ENVIRONMENTS: ClassVar[int] = 1
    """Least environments in training: 2 for a method that compares them."""
    CONTROLS: ClassVar[bool] = False
    """Whether training needs both labels that are controls and labels that are not."""

    def __init__(self, options: MethodOptions, task: Task) -> None:
        super().__init__()
        task.require_environments(type(self).__module__.rpartition(".")[2], self.ENVIRONMENTS)
        self.options = options
        self.task = task

    def stages(self, steps: int) -> tuple[Stage, ...]:
        """The stages in order; the steps of those that classify add up to `steps`."""
        raise NotImplementedError

    def embed(self, image: Tensor) -> Tensors:
        """Images or profiles to "representation" and, if there are blocks, "content", "style".

        (B, C, H, W) or (B, features) to (B, D) float32 each.
        """
        raise NotImplementedError

    def outputs(self, batch: Batch, stage: str) -> Tensors:
        """What the losses of `stage` share; holds at least what `predict` needs."""
        del stage
        return self.embed(batch.image)

    def predict(self, embedded: Tensors) -> Tensor | None:
        """Logits (B, labels) from what `embed` or `outputs` returned; None if it has no head."""
        del embedded
        return None

    def swap(self, content: Tensor, style: Tensor) -> Tensor | None:
        """Images (B, C, H, W) composed of content and style blocks; None if it has no decoder."""
        del content, style
        return None

    def diagnostics(self, batch: Batch, outputs: Tensors) -> Tensors:
        """Scalars by name that are recorded on validation batches and are no part of a loss."""
        del batch, outputs
        return {}

    def alarm(self, scores: dict[str, float]) -> str | None:
        """A one-line warning if the validation scores of the selected weights mean a failure."""
        del scores
        return None

    def begin(self, stage: Stage) -> None:
        """Change weights before the first step of a stage; not called where a run is resumed."""
        del stage

    def step(
        self, batch: Batch, stage: Stage, optimizers: Iterable[torch.optim.Optimizer],
        backward: Callable[[Tensor, list[nn.Parameter]], None],
    ) -> dict[str, Tensor]:  # fmt: skip
        """One optimisation step: every phase in order. Returns the unweighted losses, detached."""
        outputs = self.outputs(batch, stage.name)
        logged: dict[str, Tensor] = {}
        for phase, optimizer in zip(stage.phases, optimizers, strict=True):
            losses = phase.losses(batch, outputs)
            optimizer.zero_grad(set_to_none=True)
            backward(weighted_sum(losses), phase.parameters)
            optimizer.step()
            logged |= {name: loss.value.detach() for name, loss in losses.items()}
        return logged

    def phase(
        self,
        name: str,
        parameters: Iterable[nn.Parameter],
        losses: Callable[[Batch, Tensors], dict[str, Loss]],
        *,
        learning_rate: float | None = None,
        validates: bool = False,
    ) -> Phase:
        """A phase with the optimizer of the method's options, or at another `learning_rate`."""
        options = self.options
        return Phase(
            name,
            list(parameters),
            losses,
            options.learning_rate if learning_rate is None else learning_rate,
            options.weight_decay,
            validates,
            options.optimizer,
            options.momentum,
        )
