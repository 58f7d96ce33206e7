"""The losses as pure functions of embeddings and labels."""

from deconfound.losses.contrastive import content_losses, invariance, supervised_contrastive

__all__ = ["content_losses", "invariance", "supervised_contrastive"]
