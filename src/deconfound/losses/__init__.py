"""The losses as pure functions of embeddings and labels."""

from deconfound.losses.contrastive import content_losses, invariance, supervised_contrastive
from deconfound.losses.within_label import invariance_given_label

__all__ = ["content_losses", "invariance", "invariance_given_label", "supervised_contrastive"]
