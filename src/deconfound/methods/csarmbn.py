"""CS-ARM-BN: ARM-BN whose statistics of an environment also count its negative controls."""

from typing import Literal

from pydantic import Field

from deconfound.methods.armbn import ArmBn, ArmBnOptions
from deconfound.methods.contract import ContextOptions


class CsArmBnOptions(ArmBnOptions):
    """Options of CS-ARM-BN."""

    controls_per_episode: int = Field(32, ge=1)
    """Negative controls of its environment that join the statistics of each episode."""

    measured: Literal["controls", "joined"] = "controls"
    """What an environment is measured on in validation and embedding: its controls, or these and
    its images, joined as in an episode, which also serves where controls are fewer than 16."""

    @property
    def context(self) -> ContextOptions:
        """As of ARM-BN, and the controls."""
        alone = self.measured == "controls"
        return ContextOptions(self.episodes, self.context_images, self.controls_per_episode, alone)


class CsArmBn(ArmBn):
    """ARM-BN in which negative controls of the same environment join the statistics.

    Sanchez-Fernandez et al., CS-ARM-BN, arXiv 2604.20824, 2026: their share of the statistics does
    not depend on which labels a batch holds. "representation" is the encoder's output r. The
    controls that join an episode are in no loss; a control drawn as one of the episode's own rows
    is, if it has a label. Deviations as of ARM-BN; and the paper joins controls and images in
    embedding too, which is `measured` "joined".
    """

    Options = CsArmBnOptions
    options: CsArmBnOptions
    SUMMARY = "ARM-BN, with an environment's negative controls joined to its statistics"
    PAPER = "Sanchez-Fernandez et al., CS-ARM-BN, arXiv 2604.20824, 2026"
