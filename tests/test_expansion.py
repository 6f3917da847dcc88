"""Query expansion and database augmentation against their definitions, one image after the other."""

import numpy as np
import pytest

from reid_utils.ranking.feature_files import Features
from reid_utils.ranking.methods import alpha_query_expansion, database_augmentation, distances_of

RNG = np.random.default_rng(0)
QUERY, GALLERY = (RNG.normal(size=(n, 6)).astype(np.float32) for n in (5, 30))


def unit(x):
    return x / np.linalg.norm(x)


def expanded(image, others, k, alpha):
    """The definition: an image, its similarities to the others, the k largest of them."""
    similarities = np.array([unit(image) @ unit(other) for other in others])
    total = unit(image)
    for j in np.argsort(-similarities, kind="stable")[:k]:
        total = total + max(similarities[j], 0) ** alpha * unit(others[j])
    return unit(total)


@pytest.mark.parametrize(("k", "alpha"), [(1, 3), (6, 3), (4, 0), (40, 1)])
def test_both_are_weighted_means_with_the_nearest_gallery_images(k, alpha):
    query, gallery = QUERY.astype(float), GALLERY.astype(float)
    found = alpha_query_expansion(QUERY, GALLERY, k, alpha)
    np.testing.assert_allclose(found[0], [expanded(image, gallery, k, alpha) for image in query], atol=1e-6)
    np.testing.assert_allclose(found[1], [unit(image) for image in gallery], atol=1e-6)
    found = database_augmentation(QUERY, GALLERY, k, alpha)
    np.testing.assert_allclose(found[0], [unit(image) for image in query], atol=1e-6)
    others = [np.delete(gallery, j, axis=0) for j in range(len(gallery))]
    expected = [expanded(image, rest, k, alpha) for image, rest in zip(gallery, others, strict=True)]
    np.testing.assert_allclose(found[1], expected, atol=1e-6)


def test_blocks_make_no_difference(monkeypatch):
    whole = database_augmentation(QUERY, GALLERY)[1]
    monkeypatch.setattr("reid_utils.ranking.methods._BLOCK", 7)
    np.testing.assert_allclose(database_augmentation(QUERY, GALLERY)[1], whole, atol=1e-6)


def ranked(query, gallery, name, **settings):
    ids = {"query_players": np.arange(len(query)), "gallery_players": np.arange(len(gallery))}
    return distances_of(Features(query=query, gallery=gallery, **ids), name, **settings)


@pytest.mark.parametrize("name", ["alpha-QE", "DBA"])
def test_as_rows_of_the_table_they_bring_an_image_nearer_to_its_cluster(name):
    centres = np.repeat(np.eye(6, dtype=np.float32), 5, axis=0)
    gallery = centres + 0.4 * RNG.normal(size=centres.shape).astype(np.float32)
    genuine = np.eye(6, dtype=bool).repeat(5, axis=1)
    plain, found = (ranked(np.eye(6, dtype=np.float32), unit_rows(gallery), kind, k2=4) for kind in ("none", name))
    assert found.shape == (6, 30) and found[genuine].mean() < plain[genuine].mean()
    copies = ranked(QUERY[:1], np.repeat(QUERY[:1], 3, axis=0), name)
    np.testing.assert_allclose(copies, 0, atol=1e-6)


def unit_rows(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_bad_settings_are_named():
    for settings, message in [({"k": 0}, "k must be a whole number of at least 1, not 0"),
                              ({"alpha": -1}, "alpha must be at least 0, not -1")]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            alpha_query_expansion(QUERY, GALLERY, **settings)
