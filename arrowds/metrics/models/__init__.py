"""Metrics by a causal language model: how well it predicts a sample.

    text or token ids --encoding--> tokens --windows--> forwards of about one size --scoring--> nats --> values

``checkpoints`` says what a model is, by content, and loads it once per process; ``losses`` has what users call.
"""

from arrowds.metrics.models.losses import bits_per_byte, loss, loss_difference, perplexity
from arrowds.metrics.models.measures import ModelMetric

__all__ = ["ModelMetric", "bits_per_byte", "loss", "loss_difference", "perplexity"]
