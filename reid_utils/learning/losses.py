"""Losses on unit-length features: symmetric InfoNCE, two ID losses and batch-hard triplet."""

import inspect
import math
import re

import torch
from torch import nn
from torch.nn import functional

INITIAL_LOGIT_SCALE = math.log(1 / 0.07)


def info_nce(query, gallery, logit_scale, label_smoothing=0.1):
    """Symmetric InfoNCE of n pairs: each query must find its partner among the n gallery images, and the reverse.

    query, gallery: (n, d) float32 of unit length, row i of both the same player; logit_scale: scalar tensor, the log of
    the inverse temperature, not clipped. Returns a scalar. Source: the paper (CLIP's loss, both sides images).
    """
    logits = logit_scale.exp() * query @ gallery.T
    target = torch.arange(len(query), device=query.device)
    forth = functional.cross_entropy(logits, target, label_smoothing=label_smoothing)
    back = functional.cross_entropy(logits.T, target, label_smoothing=label_smoothing)
    return (forth + back) / 2


def id_loss(features, labels, neck, classifier, label_smoothing=0.1):
    """Cross-entropy over the training players, by a linear classifier on batch-normalised features.

    features (n, d), labels (n,) int64 in 0…P−1; `neck`: BatchNorm1d of width d, `classifier`: Linear from d to P
    without bias. Players are retrieved by the features before the neck. Returns a scalar. The paper compares with an ID
    loss that was not published; this is the form of reid-strong-baseline, on features of unit length.
    """
    return functional.cross_entropy(classifier(neck(features)), labels, label_smoothing=label_smoothing)


def cosine_id_loss(features, labels, centres, logit_scale, label_smoothing=0.1):
    """Cross-entropy over the training players, logits being scaled cosines to one learnt centre a player.

    features (n, d) of unit length, labels (n,) int64 in 0…P−1, centres (P, d). Returns a scalar. It uses the same
    features and the same learnable scale as InfoNCE, so it is nearer to that than what re-ID calls an ID loss.
    """
    logits = logit_scale.exp() * features @ functional.normalize(centres, dim=1).T
    return functional.cross_entropy(logits, labels, label_smoothing=label_smoothing)


def triplet_loss(features, labels, margin=0.3):
    """Batch-hard triplet: for each image the farthest of its player against the nearest of the others.

    features (n, d) of unit length, labels (n,). Euclidean distance; hinge with `margin`. Returns a scalar.
    Every image needs another of its player and one of another player in the batch.
    """
    same = labels[:, None] == labels[None, :]
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    squared = (2 - 2 * features @ features.T).clamp(min=1e-12)
    distances = squared.sqrt()
    farthest = distances.masked_fill(~same | itself, -1).amax(dim=1)
    nearest = distances.masked_fill(same, math.inf).amin(dim=1)
    return functional.relu(farthest - nearest + margin).mean()


# A loss says by its parameters' names what it takes: features and labels, or query and gallery for pairs, and of what
# an `Objective` learns logit_scale, centres, neck and classifier.
LOSSES = {"infonce": info_nce, "id": id_loss, "id-cosine": cosine_id_loss, "triplet": triplet_loss}
SEVERAL = {"triplet"}  # these need several images of each player in a batch


def _takes(name):
    return inspect.signature(LOSSES[name]).parameters.keys()


class Objective(nn.Module):
    """A weighted sum of losses with what they learn: the logit scale, the ID losses' classifier or centres.

    `loss` names the sum: "infonce", "id", "id-cosine", "triplet", or e.g. "id+triplet" and "infonce+0.5*triplet";
    `logit_scale`: where that starts, the encoder's own.
    """

    def __init__(self, loss, n_players, dim, label_smoothing=0.1, margin=0.3, logit_scale=INITIAL_LOGIT_SCALE):
        super().__init__()
        self.weights, self.sides = parse_loss(loss), 2 if takes_pairs(loss) else 1
        self.settings = {"label_smoothing": label_smoothing, "margin": margin}
        self.learnt = {part for name in self.weights for part in _takes(name)}
        if "logit_scale" in self.learnt:
            self.logit_scale = nn.Parameter(torch.tensor(logit_scale))
        if "centres" in self.learnt:
            self.centres = nn.Parameter(torch.empty(n_players, dim))
            nn.init.normal_(self.centres, std=0.02)
        if "classifier" in self.learnt:
            self.neck, self.classifier = nn.BatchNorm1d(dim), nn.Linear(dim, n_players, bias=False)
            self.neck.bias.requires_grad_(False)
            nn.init.normal_(self.classifier.weight, std=0.001)

    def head(self):
        """The parameters that have a learning rate of their own: the classifier's, and its neck's."""
        return [*self.neck.parameters(), *self.classifier.parameters()] if "classifier" in self.learnt else []

    def forward(self, features, labels):
        """Loss of a batch; with InfoNCE the first half of `features` are queries, the second their partners."""
        given = dict(zip(("query", "gallery"), features.chunk(2), strict=False))
        given |= {"features": features, "labels": labels, **self.settings}
        given |= {**dict(self.named_parameters(recurse=False)), **dict(self.named_children())}
        terms = {name: {part: given[part] for part in _takes(name) if part in given} for name in self.weights}
        return sum(weight * LOSSES[name](**terms[name]) for name, weight in self.weights.items())


def parse_loss(loss):
    """{"infonce": 1.0, "triplet": 0.5} of "infonce+0.5*triplet".

    Raises ValueError naming a term that is unknown or named twice, or a weight that is not a number above 0.
    """
    weights = {}
    for term in loss.split("+"):
        factor, star, name = term.rpartition("*")
        if name not in LOSSES:
            raise ValueError(f"loss {loss!r}: unknown term {name!r}; known: {', '.join(LOSSES)}")
        if name in weights:
            raise ValueError(f"loss {loss!r} names {name} twice; add the two weights up")
        if star and not (re.fullmatch(r"[0-9]*\.?[0-9]+", factor) and float(factor)):
            raise ValueError(
                f"loss {loss!r}: {factor!r} is no weight; write a number above 0, as in infonce+0.5*triplet"
            )
        weights[name] = float(factor) if star else 1.0
    return weights


def takes_pairs(loss):
    """Whether a loss is computed on pairs: where a term wants them, or none wants several images of each player."""
    terms = parse_loss(loss).keys()
    return any("query" in _takes(name) for name in terms) or not terms & SEVERAL


def source_of(loss):
    """The source code (str) of the functions that a loss adds up, for a notebook to show."""
    return "\n\n".join(inspect.getsource(LOSSES[name]) for name in parse_loss(loss))
