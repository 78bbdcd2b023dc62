"""Dashboards: the index against brute force, the files, the page. Tiny made-up activations; no model is loaded."""

import json
import lzma
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from recipes.top_examples import BINS, Passages, Tally, padded
from utils.dashboards import facts
from utils.dashboards import index as index_files
from utils.dashboards.facts import Example, Firing, Latent
from utils.dashboards.index import Index
from utils.dashboards.view import as_html, as_text
from utils.errors import CourseError
from utils.material.public_text import PASSAGE

D_SAE, DEAD = 12, 5


@pytest.fixture
def stream():
    """Passages of one dictionary's activations `[passages, positions, d_sae]`, many zeros, no other ties."""
    generator = torch.Generator().manual_seed(0)
    acts = torch.rand(30, 9, D_SAE, generator=generator) ** 4 * 50
    acts[torch.rand(acts.shape, generator=generator) < 0.7] = 0
    acts[..., DEAD] = 0
    return acts


def tallied(acts, sizes=None, examples=4):
    tally, places = Tally(D_SAE, examples), torch.arange(len(acts)) * acts.shape[1]
    for part, at in zip(acts.split(list(sizes or [len(acts)])), places.split(list(sizes or [len(acts)])), strict=True):
        tally.add(part, at)
    return tally


@pytest.mark.parametrize("sizes", [(30,), (7, 1, 12, 10), (1,) * 30])
def test_top_places_are_those_of_a_full_sort(stream, sizes):
    tally = tallied(stream, sizes)
    for latent in range(D_SAE):
        strongest = [
            (float(row[:, latent].max()), 9 * n + int(row[:, latent].argmax())) for n, row in enumerate(stream)
        ]
        wanted = sorted((pair for pair in strongest if pair[0] > 0), reverse=True)[:4]
        assert tally.places[latent].tolist() == ([place for _, place in wanted] + [-1] * 4)[:4]
        assert tally.strengths[latent].tolist() == pytest.approx(([value for value, _ in wanted] + [0.0] * 4)[:4])


@pytest.mark.parametrize("sizes", [(30,), (7, 1, 12, 10)])
def test_histogram_counts_every_firing_once(stream, sizes):
    tally = tallied(stream, sizes)
    edges = tally.edges().double()
    for latent in range(D_SAE):
        values = stream[..., latent][stream[..., latent] > 0].double()
        inside = values.clamp(edges[0] * 1.0001, edges[-1] * 0.9999)
        wanted = [int(((inside >= low) & (inside < high)).sum()) for low, high in pairwise(edges)]
        assert tally.counts[latent].tolist() == wanted
    assert tally.counts[DEAD].sum() == 0
    assert len(edges) == BINS + 1


def test_negative_zeros_do_not_count():
    tally = Tally(2)
    tally.add(torch.tensor([[[-0.0, 1.0]]]), torch.tensor([0]))
    assert tally.counts.sum(1).tolist() == [0, 1]
    assert tally.places[0, 0] == -1


def test_passages_and_places_agree():
    documents = [list(range(10, 10 + length)) for length in (5, 300, PASSAGE, 1)]
    cut = Passages.of(documents)
    whole = [token for ids in documents for token in ids]
    for passage, place in zip(cut.tokens, cut.places, strict=True):
        assert whole[place : place + len(passage)] == list(passage)
    index = Index(*[torch.zeros(0)] * 4, torch.tensor(cut.document_starts), 0)
    for place, token in enumerate(whole):
        document, start, position = index.passage_of(place)
        assert start % PASSAGE == 0 and position < PASSAGE
        assert documents[document][start + position] == token
    covered = [number for batch in cut.batches() for number in range(len(cut.tokens))[batch]]
    assert covered == list(range(len(cut.tokens)))


def test_padding_and_special_tokens_do_not_count():
    tokens, counted = padded([[7, 0, 9], [8]], special=[0, 1, 2])
    assert tokens.tolist() == [[1, 7, 0, 9], [1, 8, 1, 1]]
    assert counted.tolist() == [[True, False, True], [True, False, False]]


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A corpus, a dictionary's weights and their index, in place of the course's own."""
    weights = tmp_path / "dictionaries" / "resid_pre.3" / "sae_weights.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"weights")
    for name, path in {"CORPUS": "corpus.xz", "INDEX": "top_examples", "DICTIONARIES": "dictionaries"}.items():
        monkeypatch.setattr(index_files, name, tmp_path / path)
    (tmp_path / "corpus.xz").write_bytes(lzma.compress(json.dumps({"doc": "a", "text": "Some text."}).encode()))
    tally = tallied(torch.rand(3, 4, D_SAE))
    path = tmp_path / "top_examples" / "resid_pre.3.safetensors"
    made_from = index_files.fingerprints(index_files.CORPUS, weights.parent)
    index_files.save_index(tally.index([0, 12], 12), path, made_from)
    return SimpleNamespace(index=path, weights=weights, tally=tally)


def test_an_index_comes_back_as_it_was_written(shipped):
    index = index_files.read_index("resid_pre.3")
    assert torch.equal(index.places, shipped.tally.places) and torch.equal(index.counts, shipped.tally.counts)
    assert index.n_tokens == 12


@pytest.mark.parametrize("trouble", ["missing", "damaged", "other weights"])
def test_trouble_with_an_index_names_the_file_and_the_command(shipped, trouble):
    if trouble == "missing":
        shipped.index.unlink()
    elif trouble == "damaged":
        shipped.index.write_bytes(shipped.index.read_bytes()[:100])
    else:
        shipped.weights.write_bytes(b"retrained")
    with pytest.raises(CourseError, match=r"resid_pre\.3\.safetensors .*python -m recipes\.top_examples resid_pre\.3"):
        index_files.read_index("resid_pre.3")


@pytest.mark.parametrize(("latent", "words"), [(12, "0 to 11"), (-1, "0 to 11"), (1.5, "whole number")])
def test_a_latent_that_is_not_there(latent, words):
    with pytest.raises(CourseError, match=words):
        facts._checked(latent, "resid_pre.3", D_SAE)


def test_numbers_of_any_library_are_numbers():
    assert facts._checked(torch.tensor(3), "resid_pre.3", D_SAE) == 3


def latent(**changed):
    example = Example((" a", " <b>", "\n"), (0.0, 4.0, 1.0), 1, "novel/1")
    found = Latent(
        dictionary="resid_pre.3",
        number=7,
        about="about",
        firing=Firing((0, 3, 1), (1.0, 2.0, 4.0, 8.0), 1000),
        examples=(example,),
        promoted=((" yes", 1.5),),
        suppressed=((" no", -1.5),),
        read=(),
        ignored=(),
        nearest=((8, 0.5),),
    )
    return replace(found, **changed)


def test_the_page_is_escaped_and_runs_and_fetches_nothing():
    page = as_html(latent())
    assert "&lt;b&gt;" in page and "<b>" not in page
    assert not any(word in page for word in ("<script", "http", "<iframe", "<link", "<style"))


def test_the_strongest_token_is_marked_by_more_than_colour():
    page = as_html(latent())
    assert page.count("<strong") == 1 and "(strongest: 4)" in page and "outline" in page
    assert "« <b>»" in as_text(latent())


def test_density_is_said():
    for shown in (as_html(latent()), as_text(latent())):
        assert "4 of 1,000 tokens" in shown and "0.40%" in shown


def test_a_dead_latent_is_said_to_be_dead():
    dead = latent(firing=Firing((0, 0, 0), (1.0, 2.0, 4.0, 8.0), 1000), examples=())
    for shown in (as_html(dead), as_text(dead)):
        assert "never fired on the 1,000 tokens" in shown
        assert "Histogram" not in shown


def test_only_a_hub_profile_embeds_neuronpedia():
    page = as_html(
        latent(firing=None, examples=(), neuronpedia="https://www.neuronpedia.org/gpt2-small/3-res-jb/7?embed=true")
    )
    assert "<iframe" in page and "neuronpedia.org/gpt2-small/3-res-jb/7" in page
