"""Classifiers so small that their Fisher information can be worked out by hand."""

import torch
from torch import nn

from fusionlib.testing import tiny_model

INPUTS = torch.tensor([[1.0, 0.0, 2.0], [0.5, -1.0, 0.0], [-2.0, 1.0, 1.0], [0.0, 3.0, -1.0]])


def linear(*weight, bias=0.0):
    model = nn.Linear(len(weight), 1)
    model.weight.data = torch.tensor([weight])
    model.bias.data = torch.tensor([bias])
    return model.eval()


def two_classes(features, batch):
    """Scores (0, z): the probability of the second class is the logistic function of z."""
    return torch.cat([torch.zeros_like(features), features], dim=1)


def logistic(model, batch):
    return two_classes(model(**batch), batch)


def variance(model, inputs=INPUTS):
    p = model(inputs).sigmoid().detach()
    return p * (1 - p)


class Branching(nn.Module):
    """Looks at a value to decide what to do, which cannot be vectorised; has a weight that is never used."""

    def __init__(self):
        super().__init__()
        self.layer = tiny_model(1)
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, input):
        return self.layer(input) if bool(input.sum() > 0) else self.layer(-input)
