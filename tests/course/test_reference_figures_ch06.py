"""Chapter 06 on the `gpt2` profile: published figures of layer 8's transcoder, latent 1."""

import pytest
import torch

from solutions.ch06_transcoders import create_extended_embedding, top_deembeddings, top_logits

pytestmark = pytest.mark.published

LATENT = 1


@pytest.fixture(scope="module")
def gpt2():
    from utils import load

    return load("gpt2")


@pytest.fixture(scope="module")
def transcoder(gpt2):
    return gpt2.dictionaries["transcoder.8"]


def words(gpt2, token_ids):
    return [gpt2.tokenizer.decode([token]) for token in token_ids.tolist()]


def test_plain_deembedding(gpt2, transcoder):
    _, token_ids = top_deembeddings(gpt2.model, transcoder, LATENT, 4)
    assert words(gpt2, token_ids) == ["liga", "GAME", "jee", " scorer"]


def test_extended_deembedding(gpt2, transcoder):
    scores = create_extended_embedding(gpt2.model) @ transcoder.W_enc[:, LATENT]
    values, token_ids = scores.topk(3)
    assert words(gpt2, token_ids) == ["goal", " Goal", " goal"]
    torch.testing.assert_close(values, torch.tensor([14.161, 13.004, 12.510]), atol=0.02, rtol=0)


def test_logit_lens(gpt2, transcoder):
    values, token_ids = top_logits(gpt2.model, transcoder, LATENT, 1)
    assert words(gpt2, token_ids) == ["keeping"]
    assert values.item() == pytest.approx(0.693, abs=0.005)
