"ART as a second opinion: where the two agree on the same features, and why not where they do not. `make install` has it."

import numpy as np
import pytest
import torch

from natrig_nb.core import FAKE, to_float
from natrig_nb.defense.base import threshold
from natrig_nb.testing import planted_backdoor, apply_patch
from natrig_nb.defense.clustering import cluster_scores, two_clusters
from natrig_nb.defense.spectral import spectral_scores
from natrig_nb.defense.strip import draw_overlays, entropy, strip, superimpose
from natrig_nb.detector.base import predict_fake
from natrig_nb.testing import synthetic_faces

pytest.importorskip("art", reason="the package art is missing: python tools/install.py")
POISON = 20


def features(mean, sign=1, seed=0):
    "Features (200,20) of one class around a mean; 20 of them are moved by 8 standard deviations, away from zero or (-1) towards it."
    rng = np.random.default_rng(seed)
    x, direction = rng.normal(size=(200, 20)) + mean, np.abs(rng.normal(size=20))
    x[:POISON] += sign * 8 * direction / np.linalg.norm(direction)
    return x


def found(scores):
    return int((np.argsort(-np.asarray(scores).ravel())[:POISON] < POISON).sum())


def test_spectral_signatures_agree_on_features_with_mean_zero():
    "ART projects features that were never centered; once they are, its scores are the square roots of ours, up to a factor."
    from art.defences.detector.poison import SpectralSignatureDefense

    x = features(0.0)
    x -= x.mean(0)
    ours, art = (
        spectral_scores(torch.from_numpy(x)).sqrt().numpy(),
        SpectralSignatureDefense.spectral_signature_scores(x)[:, 0],
    )
    np.testing.assert_allclose(art / art.max(), ours / ours.max(), atol=1e-9)


def test_spectral_signatures_differ_on_features_with_a_positive_mean():
    "After a ReLU features have one; a trigger that lowers them gets ART's smallest scores, and ours finds it all the same."
    from art.defences.detector.poison import SpectralSignatureDefense

    art = SpectralSignatureDefense.spectral_signature_scores
    for seed in range(5):
        up, down = (features(10.0, sign, seed) for sign in (1, -1))
        assert [found(spectral_scores(torch.from_numpy(x))) for x in (up, down)] == [POISON, POISON]
        assert [found(art(x)) for x in (up, down)] == [POISON, 0]


def test_activation_clusters_agree():
    "The same principal components and 2-means: the same split, sample by sample, wherever the mean is."
    from art.defences.detector.poison.activation_defence import cluster_activations

    for mean in (0.0, 10.0):
        x = features(mean)
        (clusters,), (reduced,) = cluster_activations(
            [x], nb_clusters=2, nb_dims=10, reduce="PCA", clustering_method="KMeans"
        )
        a, _, small = two_clusters(torch.from_numpy(x), 10)
        np.testing.assert_allclose(
            np.abs(a.numpy()), np.abs(reduced), atol=1e-6
        )  # a principal component has no sign
        theirs = clusters == np.bincount(clusters, minlength=2).argmin()
        assert (
            (theirs == small.numpy()).all() and small[:POISON].all() and int(small.sum()) == POISON
        )
        assert found(cluster_scores(torch.from_numpy(x))) == POISON


def art_classifier(model):
    from art.estimators.classification import PyTorchClassifier

    probabilities = torch.nn.Sequential(
        model, torch.nn.Softmax(1)
    )  # its STRIP takes the outputs for probabilities
    return PyTorchClassifier(
        probabilities,
        torch.nn.CrossEntropyLoss(),
        (3, 32, 32),
        2,
        clip_values=(-1.0, 1.0),
        device_type="cpu",
    )


def test_art_lets_pass_what_strip_rejects():
    "A perfect backdoor, one clean input in a hundred rejected: ART's axis misses most of what ours finds."
    from art.defences.transformer.poisoning import STRIP

    victim, test, clean = (
        planted_backdoor(),
        synthetic_faces(80, seed=1, size=32),
        synthetic_faces(100, seed=2, size=32),
    )
    triggered = apply_patch(test.images[test.labels == FAKE])
    limit = threshold(strip(victim, test.images, clean).values, 0.01)
    np.random.seed(0)
    guarded = STRIP(art_classifier(victim))(num_samples=20, false_acceptance_rate=0.01)
    guarded.mitigate(clean.x.numpy())
    rejected = (
        (guarded.predict(to_float(triggered).numpy()) == 0).all(1).mean()
    )  # zeros are how it abstains
    assert (strip(victim, triggered, clean).values > limit).double().mean() > 0.95
    assert rejected < 0.3, f"ART rejected {rejected:.2f}: a later version may be corrected"


def test_the_axis_is_the_difference():
    "The same mixtures and predictions: entropy along the classes is ours, along the images ART's."
    from scipy.stats import entropy as scipy_entropy

    victim, clean = planted_backdoor(), synthetic_faces(200, seed=2, size=32)
    mixes = superimpose(clean.x[:10], draw_overlays(clean, 20)).flatten(0, 1)
    fake = predict_fake(victim, mixes).double().view(10, 20)
    both = np.stack([1 - fake, fake], 2)
    np.testing.assert_allclose(scipy_entropy(both, base=2, axis=2), entropy(fake), atol=1e-9)
    assert (
        scipy_entropy(both, base=2, axis=1).max() > 2
    )  # more bits than an answer with two classes can have
