import math

import pytest
import torch
from torch.nn.functional import normalize

from reid_utils.learning.losses import Objective, cosine_id_loss, id_loss, info_nce, parse_loss, triplet_loss


def _unit(*shape, seed=0):
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_info_nce_by_hand():
    # Two pairs, orthogonal to each other, logit scale log 2: each softmax is e²/(e² + 1); smoothing 0.1 over 2 classes.
    features = torch.eye(2)
    right, wrong = math.log(math.exp(2) / (math.exp(2) + 1)), math.log(1 / (math.exp(2) + 1))
    loss = info_nce(features, features, torch.tensor(math.log(2.0)), label_smoothing=0.1)
    assert loss.item() == pytest.approx(-(0.95 * right + 0.05 * wrong), abs=1e-6)


def test_info_nce_is_symmetric_in_the_sides_and_blind_to_the_order_of_pairs():
    query, gallery, scale = _unit(6, 8), _unit(6, 8, seed=1), torch.tensor(2.0)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    loss = info_nce(query, gallery, scale)
    assert torch.allclose(loss, info_nce(gallery, query, scale))
    assert torch.allclose(loss, info_nce(query[order], gallery[order], scale))


def test_cosine_id_loss_falls_to_the_smoothing_floor_when_features_sit_on_their_centres():
    centres, labels = torch.eye(5), torch.arange(5)
    floor = cosine_id_loss(centres, labels, centres, torch.tensor(3.0), label_smoothing=0.0)
    assert floor < 1e-6
    assert cosine_id_loss(centres, labels.roll(1), centres, torch.tensor(3.0), label_smoothing=0.0) > 10


def test_id_loss_classifies_batch_normalised_features_without_any_bias():
    objective, features, labels = Objective("id", 3, 4), _unit(6, 4), torch.arange(6) % 3
    assert {name for name, p in objective.named_parameters() if p.requires_grad} == {"neck.weight", "classifier.weight"}
    weight = torch.randn(3, 4, generator=torch.Generator().manual_seed(2))
    objective.classifier.weight.data.copy_(weight)
    normalised = (features - features.mean(0)) / (features.var(0, unbiased=False) + 1e-5).sqrt()
    logs = (normalised @ weight.T).log_softmax(dim=1)
    expected = -(0.9 * logs[torch.arange(6), labels] + 0.1 * logs.mean(dim=1)).mean()
    assert objective(features, labels).item() == pytest.approx(expected.item(), abs=1e-5)
    assert id_loss(features, labels, objective.neck, objective.classifier).item() == pytest.approx(expected.item())
    assert {id(p) for p in objective.head()} == {id(p) for p in objective.parameters()}


def test_a_contrastive_loss_starts_at_the_scale_that_it_is_given():
    features = _unit(8, 6)
    given = Objective("infonce", 4, 6, logit_scale=math.log(100))
    expected = info_nce(features[:4], features[4:], torch.tensor(math.log(100)))
    assert torch.equal(given(features, torch.arange(4).repeat(2)), expected)
    assert Objective("infonce", 4, 6).logit_scale.exp().item() == pytest.approx(1 / 0.07)


def test_triplet_takes_the_hardest_of_each_kind():
    angles = torch.tensor([0.0, 0.3, 0.5, 1.5])
    features = torch.stack([angles.cos(), angles.sin()], dim=1)
    labels = torch.tensor([0, 0, 1, 1])
    chord = lambda a, b: 2 * math.sin(abs(a - b) / 2)  # noqa: E731
    pairs = [(0.3, 0.5), (0.3, 0.2), (1.0, 0.2), (1.0, 1.2)]
    expected = sum(max(0, chord(far, 0) - chord(near, 0) + 0.3) for far, near in pairs) / 4
    assert triplet_loss(features, labels).item() == pytest.approx(expected, abs=1e-5)


def test_weighted_sums_add_up_and_carry_gradients():
    features, labels = _unit(8, 6).requires_grad_(), torch.arange(4).repeat(2)
    whole = Objective("infonce+0.5*triplet", 4, 6)
    parts = info_nce(features[:4], features[4:], whole.logit_scale) + 0.5 * triplet_loss(features, labels)
    assert torch.allclose(whole(features, labels), parts)
    whole(features, labels).backward()
    assert features.grad.abs().sum() > 0 and whole.logit_scale.grad is not None


@pytest.mark.parametrize(
    ("loss", "told"),
    [
        ("arcface", "known: infonce, id, id-cosine, triplet"),
        ("infonce+ids", "known: infonce, id, id-cosine, triplet"),
        ("", "known: infonce, id, id-cosine, triplet"),
        ("x*triplet", "'x' is no weight"),
        ("infonce+0*triplet", "'0' is no weight"),
        ("*id", "'' is no weight"),
        ("id+0.5*id", "names id twice"),
    ],
)
def test_a_loss_that_cannot_be_read_is_named_with_the_mend(loss, told):
    with pytest.raises(ValueError, match=told):
        parse_loss(loss)


def test_weights_of_a_sum():
    assert parse_loss("infonce+.5*triplet+2*id") == {"infonce": 1.0, "triplet": 0.5, "id": 2.0}
