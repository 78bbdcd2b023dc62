"""Chapter 04's published figures of the gpt2 profile. They need the hub: `python -m pytest -m published`."""

import pytest
import torch

from solutions import ch04_latent_gradients as chapter
from utils import load

pytestmark = [pytest.mark.published, pytest.mark.slow]


@pytest.fixture(scope="module")
def course():
    return load("gpt2")


@pytest.fixture(scope="module")
def jacobian(course):
    tokens = course.model.to_tokens("The Eiffel tower is in Paris")
    earlier, later = course.profile.layers["latents_to_latents"]
    saes = course.dictionaries[f"resid_pre.{earlier}"], course.dictionaries[f"resid_pre.{later}"]
    return tokens, saes, chapter.latent_to_latent_gradients(tokens, *saes, course.model)


def places(acts):
    return set(map(tuple, acts.indices.tolist()))


def test_later_latents_in_truth_and_under_reconstruction(jacobian):
    _, _, (_, _, acts_next, acts_next_recon) = jacobian
    assert len(acts_next.values) == 181
    assert len(acts_next_recon.values) == 179
    assert len(places(acts_next) ^ places(acts_next_recon)) == 8


def test_the_bigram_stands_out(course, jacobian):
    """0.16911 at " E" feeds 3.15266 at "iff": the strongest link between these two tokens."""
    _, _, (grads, acts_prev, _, acts_next_recon) = jacobian
    words = course.model.to_str_tokens("The Eiffel tower is in Paris")
    rows = (acts_next_recon.indices[:, 1] == words.index("iff")).nonzero()[:, 0]
    columns = (acts_prev.indices[:, 1] == words.index(" E")).nonzero()[:, 0]
    between = grads[rows][:, columns]
    row, column = divmod(int(between.argmax()), len(columns))
    assert acts_prev.indices[columns[column], 2] == 16911
    assert acts_next_recon.indices[rows[row], 2] == 15266


def test_the_token_plot_shows_the_bigram_too(course):
    prompt = "The Eiffel tower is in Paris"
    tokens, words = course.model.to_tokens(prompt), course.model.to_str_tokens(prompt)
    (layer,) = course.profile.layers["tokens_to_latents"]
    sae = course.dictionaries[f"resid_pre.{layer}"]
    grads, acts = chapter.token_to_latent_gradients(tokens, sae, course.model)
    bigram = torch.tensor([0, words.index("iff"), 15266])
    place = (acts.indices == bigram).all(dim=1).nonzero().item()
    pulls = grads[0, :, place]
    assert pulls[words.index(" E")] > 0
    assert pulls[words.index("iff")] > 0


@pytest.fixture(scope="module")
def answer(course):
    tokens = course.model.to_tokens("The Eiffel tower is in the city of")
    (layer,) = course.profile.layers["latents_to_logits"]
    sae = course.dictionaries[f"resid_pre.{layer}"]
    return chapter.latent_to_logit_gradients(tokens, sae, course.model, 5)


def test_paris_is_first_in_truth_and_tenth_under_reconstruction(course, answer):
    _, logits, recon, token_ids, _ = answer
    paris = course.model.to_single_token(" Paris")
    assert token_ids[0] == paris
    assert round(logits[paris].item(), 2) == pytest.approx(14.83, abs=0.02)
    assert logits.softmax(-1)[paris].item() == pytest.approx(0.0476, abs=0.0005)
    assert (recon > recon[paris]).sum() == 9


def test_french_and_german_text_speak_for_paris(answer):
    grads, _, _, _, acts = answer
    strongest = acts.indices[(grads[0] * acts.values).topk(20).indices, 2]
    assert {22250, 5879} <= set(strongest.tolist())
