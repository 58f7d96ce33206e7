"""Skipping or clipping gradients that are too large or not finite."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class GradientRule:
    """Skips the step of a phase whose gradient is unusable, and clips one that is only large.

    Child, Very Deep VAEs, 2021, used by Makino et al., SCBD, A.1.2: skipped above a norm of 1e12,
    clipped to a norm of 1e6. A phase whose loss or norm is not finite is skipped too. To skip a
    phase its gradients are removed, so its weights and its optimizer's state do not change; batch
    norms get back the running statistics that they had before the step.
    """

    def __init__(self, skip_above: float | None, clip_at: float | None, most_skipped: int) -> None:
        self.skip_above, self.clip_at, self._most = skip_above, clip_at, most_skipped
        self.skipped = 0
        """Steps so far in which a phase was skipped."""
        self.in_a_row = 0
        """Skipped steps since the last step that was not skipped."""
        self._skipping = False
        self._statistics: list[tuple[Tensor, Tensor]] = []

    def begin_step(self, network: nn.Module) -> None:
        """Copy the running statistics of `network`, in case the step is skipped."""
        if self.skip_above is None:
            return
        norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
        self._statistics = [(kept, kept.clone()) for norm in norms for kept in norm.buffers()]

    def apply(self, loss: Tensor, parameters: list[nn.Parameter]) -> None:
        """Remove or scale down the gradients of `parameters` with respect to `loss` ()."""
        if self.skip_above is None and self.clip_at is None:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if self.skip_above is not None:
            usable = (
                torch.isfinite(loss.detach()) & torch.isfinite(norm) & (norm <= self.skip_above)
            )
            if not usable:
                self._skipping = True
                for parameter in parameters:
                    parameter.grad = None
                return
        if self.clip_at is not None:
            nn.utils.clip_grads_with_norm_(parameters, self.clip_at, norm)

    def end_step(self) -> None:
        """Count the step; restore the running statistics if it was skipped."""
        if self._skipping:
            for kept, before in self._statistics:
                kept.copy_(before)
        self.skipped += self._skipping
        self.in_a_row = self.in_a_row + 1 if self._skipping else 0
        self._skipping = False

    @property
    def gives_up(self) -> bool:
        """Whether too many steps in a row were skipped."""
        return self.in_a_row >= self._most

    def state(self) -> list[int]:
        """The counts, for `resume`."""
        return [self.skipped, self.in_a_row]

    def resume(self, state: list[int]) -> None:
        """Continue counting from a `state`; from 0 if it is empty."""
        self.skipped, self.in_a_row = state or (0, 0)
