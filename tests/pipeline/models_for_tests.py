"""Factories that test configurations name, and models that return their loss in other ways."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn


class Dropping(nn.Module):
    """Predicts the mean token through dropout, so that losses depend on the random state."""

    def __init__(self, kind="tensor", dropout=0.5):
        super().__init__()
        self.kind = kind
        self.scale = nn.Linear(1, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, input_ids, attention_mask, labels):
        x = (input_ids * attention_mask).sum(1, keepdim=True) / 1000
        loss = (self.scale(self.dropout(x)) - 1).square().mean()
        kinds = {
            "tensor": loss,
            "attribute": SimpleNamespace(loss=loss),
            "mapping": {"loss": loss},
            "wrong": loss[None],
        }
        return kinds[self.kind]


def dropping(**arguments):
    return Dropping(**arguments)


not_callable = torch.zeros(1)
