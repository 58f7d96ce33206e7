"""restain: each channel is given the mean and sd of the style image's."""

import torch
from torch import Tensor, nn

from deconfound.data.loading.batch import Batch
from deconfound.losses.risk import cross_entropy
from deconfound.methods.contract import Imputer, Loss, MethodOptions, Stage, Task, Tensors
from deconfound.nets.ist import relative_code


class Restain(Imputer):
    """Re-standardises pixels, Nobody et al. 2000."""

    RELATIVE = True
    SUMMARY = "pixels re-standardised to another image's mean and sd"
    PAPER = "Nobody, Nowhere, 2000"

    def __init__(self, options: MethodOptions, task: Task) -> None:
        super().__init__(options, task)
        self.head = nn.Linear(2 * task.channels, task.labels)

    def stages(self, steps: int) -> tuple[Stage, ...]:
        phase = self.phase("classify", self.parameters(), self._losses, validates=True)
        return (Stage("only", steps, (phase,)),)

    def embed(self, image: Tensor) -> Tensors:
        sd, mean = torch.std_mean(image, dim=(2, 3))
        return {"representation": torch.cat([mean, sd], dim=1)}

    def predict(self, embedded: Tensors) -> Tensor:
        return self.head(embedded["representation"])

    def style(self, image: Tensor, environment: Tensor) -> Tensor:
        del environment
        return self.embed(image)["representation"]

    def impute(self, image: Tensor, style: Tensor, source: Tensor | None = None) -> Tensor:
        if source is not None:
            own = self.embed(image)["representation"]
            known = own.where(source.isnan(), source)
            style = relative_code(own, known, style, (own.shape[1] // 2,))
        sd, mean = torch.std_mean(image, dim=(2, 3), keepdim=True)
        new_mean, new_sd = style[..., None, None].chunk(2, dim=1)
        return (image - mean) / sd * new_sd + new_mean

    def _losses(self, batch: Batch, outputs: Tensors) -> dict[str, Loss]:
        return {"cross_entropy": Loss(cross_entropy(self.predict(outputs), batch.label))}
