"""Kernels of chapter 06 against going through everything."""

from types import SimpleNamespace

import pytest
import torch

from fast.top_examples import encode, read, strongest, top_examples
from fast.transcoders import active_influences
from utils import load
from utils.checks.watch import watch
from utils.models.profiles import first_position


def one_by_one(acts, k, buffer, start):
    """[(act, row, column)] of one latent's activations [rows, seq]."""
    rows, seq = acts.shape
    places = [(acts[r, c].item(), r, c) for r in range(rows) for c in range(max(buffer, start), seq - buffer)]
    chosen = []
    for act, row, column in sorted(places, key=lambda place: -place[0]):
        if act > 0 and len(chosen) < k and all(row != r or abs(column - c) > buffer for _, r, c in chosen):
            chosen.append((act, row, column))
    return chosen


@pytest.mark.parametrize(("k", "buffer", "start"), [(1, 0, 0), (5, 0, 1), (6, 2, 1), (9, 4, 0), (3, 10, 0)])
def test_strongest_places(k, buffer, start):
    acts = torch.randn(7, 4, 18, generator=torch.Generator().manual_seed(k)).relu()
    values, places = strongest(acts, k, buffer, start)
    for latent in range(len(acts)):
        want = one_by_one(acts[latent], k, buffer, start)
        assert values[latent, : len(want)].tolist() == [act for act, _, _ in want]
        assert values[latent, len(want) :].eq(0).all()
        assert places[latent, : len(want)].tolist() == [[row, column] for _, row, column in want]


@pytest.fixture(scope="module")
def eighth():
    course = load()
    tokens = torch.cat([course.model.to_tokens(text)[:, :14] for text in TEXTS])
    return course.model, course.dictionaries["transcoder.8"], tokens


TEXTS = (
    "The old library on the corner of the square was closed for the winter, and nobody knew why.",
    "In 1923 the company sold its first engine to a railway in Argentina, which returned it unused.",
    "To make the soup, chop three onions, fry them in butter, and wait until your guests complain.",
)


def test_batches_make_no_difference(eighth):
    model, transcoder, tokens = eighth
    latents, start = [3, 1, 700, 41], first_position(model)
    with watch(model) as seen:
        together = top_examples(model, transcoder, tokens, latents, 4, 1, start)
    assert (seen.passes, seen.tokens, seen.hooks_left) == (1, tokens.numel(), 0)
    with watch(model) as seen:
        row_by_row = top_examples(model, transcoder, tokens, latents, 4, 1, start, memory=1)
    assert (seen.passes, seen.tokens) == (len(tokens), tokens.numel())
    torch.testing.assert_close(row_by_row[0], together[0], rtol=1e-4, atol=1e-4)
    assert torch.equal(row_by_row[1][together[0] > 0], together[1][together[0] > 0])


def test_only_wanted_latents_are_encoded(eighth):
    model, transcoder, tokens = eighth
    with torch.no_grad():
        inputs = read(model, transcoder, tokens)
        some = encode(transcoder, inputs, torch.tensor([5, 2, 2000]))
        torch.testing.assert_close(some, transcoder.encode(inputs)[..., [5, 2, 2000]], rtol=1e-4, atol=1e-4)


def test_influences_of_active_latents():
    generator = torch.Generator().manual_seed(0)
    earlier = SimpleNamespace(W_dec=torch.randn(9, 6, generator=generator))
    later = SimpleNamespace(W_enc=torch.randn(6, 8, generator=generator))
    acts = [torch.randn(5, size, generator=generator).relu() for size in (9, 8)]
    acts[0][2] = 0  # a position without any active latent
    values, where = active_influences(earlier, later, *acts)
    position, source, target = where.unbind(1)
    want = acts[0][:, :, None] * (earlier.W_dec @ later.W_enc)
    both = (acts[0][:, :, None] > 0) & (acts[1][:, None, :] > 0)
    assert torch.equal(where, both.nonzero())
    torch.testing.assert_close(values, want[position, source, target])
