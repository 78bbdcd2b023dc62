"""The figures that chapter 05 quotes for gpt2's published attention dictionaries, on a machine that reaches the hub:
`python -m pytest -m published`. Which ten words were said is not part of the reference, so counts are held loosely."""

import pytest
import torch

from solutions import ch05_attention_and_induction as solved
from utils import load
from utils.material.induction import repeated_sequences

HALF = 10
SEEDS = range(4)

pytestmark = pytest.mark.published


@pytest.fixture(scope="module")
def course():
    return load("gpt2")


@pytest.fixture(scope="module")
def gradients(course):
    """What `latent_to_latent_gradients_attn` gives for layers 4 and 5, for each of a few sequences."""
    earlier, later = course.profile.layers["attention"]
    assert (earlier, later) == (4, 5)
    saes = course.dictionaries["z.4"], course.dictionaries["z.5"]
    return [
        solved.latent_to_latent_gradients_attn(tokens[None], *saes, course.model)
        for tokens in repeated_sequences(course.model, HALF, SEEDS)
    ]


def test_numbers_of_active_latents(gradients):
    """476 true, 492 reconstructed, 150 in one but not both."""
    for _, _, acts_next, acts_recon in gradients:
        true, recon = acts_next.dense > 0, acts_recon.dense > 0
        assert true.sum().item() == pytest.approx(476, rel=0.25)
        assert recon.sum().item() == pytest.approx(492, rel=0.25)
        assert (true ^ recon).sum().item() == pytest.approx(150, rel=0.5)


def test_induction_latents_fire_on_the_whole_second_half(gradients):
    acts = torch.cat([acts_next.dense for _, _, acts_next, _ in gradients])
    found = solved.induction_latents(acts, min_second=0.9).tolist()
    assert {35425, 36126} <= set(found)


def test_three_latents_of_layer_4_feed_them(gradients):
    parts = [(grads, prev.sparse, recon.sparse) for grads, prev, _, recon in gradients]
    fed_by = solved.previous_token_latents(parts, torch.tensor([35425, 36126]), 10).tolist()
    assert {22975, 21020, 23954} <= set(fed_by)
