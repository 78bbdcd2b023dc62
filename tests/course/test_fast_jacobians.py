"""Kernels against dense formulations: on tiny random models of two families, and on the default model."""

import pytest
import torch
from sae_lens import (
    JumpReLUSAE,
    JumpReLUSAEConfig,
    StandardSAE,
    StandardSAEConfig,
    TopKSAE,
    TopKSAEConfig,
)
from sae_lens.saes.sae import SAEMetadata

from fast import jacobians, sparse
from fast.segment import Segment
from tests.course.hub_stand_in import write_tiny_gpt2
from utils.checks.watch import watch
from utils.models.loading import _boot
from utils.models.profiles import PROFILES, first_position

WIDTH, D_SAE, LAYERS = 16, 40, 4


@pytest.fixture(scope="module", params=["gpt2", "smollm2"])
def tiny(request, tmp_path_factory):
    """A random model of a profile's family; in GPT-2's every position counts, in the default one's not the first."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("models")
    write_tiny_gpt2(folder, layers=LAYERS, width=WIDTH)
    if request.param == "smollm2":
        torch.manual_seed(1)
        config = LlamaConfig(
            vocab_size=8,
            hidden_size=WIDTH,
            intermediate_size=24,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.3,
        )
        LlamaForCausalLM(config).save_pretrained(folder / "gpt2")
    return _boot(PROFILES[request.param], str(folder / "gpt2"), "cpu")


def dictionary(kind, hook_name, seed=0, d_sae=D_SAE):
    """A random dictionary, with everything in it that a fast form could forget."""
    z = hook_name.endswith("hook_z")
    shared = {
        "d_in": WIDTH,
        "d_sae": d_sae,
        "reshape_activations": "hook_z" if z else "none",
        "metadata": SAEMetadata(hook_name=hook_name),
    }
    if kind == "standard":
        sae = StandardSAE(StandardSAEConfig(apply_b_dec_to_input=True, **shared))
    elif kind == "topk":
        sae = TopKSAE(TopKSAEConfig(k=5, rescale_acts_by_decoder_norm=True, apply_b_dec_to_input=False, **shared))
    else:
        sae = JumpReLUSAE(JumpReLUSAEConfig(apply_b_dec_to_input=False, **shared))
        sae.threshold.data.fill_(0.2)
    generator = torch.Generator().manual_seed(seed)
    for parameter in (sae.W_enc, sae.W_dec, sae.b_enc, sae.b_dec):
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return sae.eval().requires_grad_(False)


def sae_hook(sae):
    return sae.cfg.metadata.hook_name


def dense_run(model, tokens, hooks, hook_name):
    kept = []
    keep = (hook_name, lambda activation, hook: kept.append(activation))
    model.run_with_hooks(tokens, fwd_hooks=[*hooks, keep])
    return kept[0]


def counted(model, acts):
    """Non-zero latents and where they are, without the positions that do not count."""
    acts = acts.clone()
    acts[:, : first_position(model)] = 0
    indices = acts.nonzero()
    return acts[indices.unbind(1)], indices


def replacing(model, tokens, sae, indices):
    """values -> the hook that puts the dense reconstruction in place."""
    first = first_position(model)

    def hook_for(values):
        acts = torch.zeros(*tokens.shape, sae.cfg.d_sae).index_put(indices.unbind(1), values)
        reconstruction = sae.decode(acts)
        put = lambda activation, hook: torch.cat([activation[:, :first], reconstruction[:, first:]], dim=1)  # noqa: E731
        return [(sae_hook(sae), put)]

    return hook_for


def active(model, tokens, sae):
    with torch.no_grad():
        return counted(model, sae.encode(dense_run(model, tokens, [], sae_hook(sae))))


def dense_latents_to_latents(model, tokens, sae_from, sae_to, values, indices):
    hooks = replacing(model, tokens, sae_from, indices)

    def acts(values):
        return sae_to.encode(dense_run(model, tokens, hooks(values), sae_hook(sae_to)))

    later, where = counted(model, acts(values).detach())
    return torch.func.jacrev(lambda values: acts(values)[where.unbind(1)], chunk_size=64)(values), later, where


def agree(got, want):
    assert got.shape == want.shape
    assert float((got - want).abs().max()) <= 1e-4 * float(want.abs().max())


def compare_latents(model, tokens, sae_from, sae_to, values=None, indices=None):
    if values is None:
        values, indices = active(model, tokens, sae_from)
    grads, acts, where = jacobians.latents_to_latents(model, tokens, sae_from, sae_to, values, indices)
    want_grads, want_acts, want_where = dense_latents_to_latents(model, tokens, sae_from, sae_to, values, indices)
    assert torch.equal(where, want_where)
    agree(acts, want_acts)
    agree(grads, want_grads)
    assert float(grads.abs().max()) > 1e-3
    return grads, where


TOKENS = torch.tensor([[0, 1, 2, 3, 4, 5], [0, 6, 5, 4, 1, 1]])

# ---- a dictionary's arithmetic


@pytest.mark.parametrize("kind", ["standard", "topk", "jumprelu"])
def test_active_rows_and_wanted_columns_give_what_the_whole_dictionary_gives(kind):
    sae = dictionary(kind, "blocks.1.hook_resid_pre")
    x = torch.randn(7, WIDTH)
    acts = sae.encode(x)
    positions, latents = acts.nonzero().unbind(1)
    rows = sparse.decoder_rows(sae, latents)
    torch.testing.assert_close(
        sparse.decode_active(sae, acts[positions, latents], positions, rows, 7), sae.decode(acts), rtol=1e-5, atol=1e-5
    )
    wanted = latents.unique()
    columns = sparse.encode_columns(sae, x, wanted)
    torch.testing.assert_close(columns[acts[:, wanted] > 0], acts[:, wanted][acts[:, wanted] > 0])


# ---- tiny models


@pytest.mark.parametrize("kind", ["standard", "topk", "jumprelu"])
def test_latents_to_latents(tiny, kind):
    sae_from, sae_to = (dictionary(kind, f"blocks.{block}.hook_resid_pre", seed=block) for block in (1, 3))
    grads, where = compare_latents(tiny, TOKENS, sae_from, sae_to)
    _, indices = active(tiny, TOKENS, sae_from)
    across = where[:, None, 0] != indices[None, :, 0]
    assert across.any()
    assert not grads[across].any(), "prompts of a batch do not see each other"


@pytest.mark.parametrize("blocks", [(1, 2), (0, 3)], ids=["neighbours", "apart"])
@pytest.mark.parametrize("kind", ["standard", "topk"])
def test_latents_to_latents_of_heads(tiny, kind, blocks):
    sae_from, sae_to = (dictionary(kind, f"blocks.{block}.attn.hook_z", seed=block) for block in blocks)
    compare_latents(tiny, TOKENS, sae_from, sae_to)


@pytest.mark.parametrize(
    "hooks",
    [("blocks.1.attn.hook_z", "blocks.2.hook_resid_pre"), ("blocks.0.hook_resid_post", "blocks.2.hook_resid_mid")],
    ids=["heads to stream", "after a block to the middle of one"],
)
def test_latents_to_latents_of_different_kinds(tiny, hooks):
    compare_latents(tiny, TOKENS, *(dictionary("topk", hook, seed=n) for n, hook in enumerate(hooks)))


def test_answers_hold_no_graph(tiny):
    """Dictionaries whose weights want gradients, as SAELens makes them, lend theirs to no answer."""
    sae, later = (dictionary("topk", f"blocks.{b}.hook_resid_pre", seed=b).requires_grad_() for b in (1, 3))
    values, indices = active(tiny, TOKENS[:1], sae)
    answers = (
        jacobians.latents_to_latents(tiny, TOKENS[:1], sae, later, values.requires_grad_(), indices),
        jacobians.tokens_to_latents(tiny, TOKENS[:1], sae),
        jacobians.latents_to_logits(tiny, TOKENS[:1], sae, values, indices, torch.tensor([1, 2])),
    )
    assert not any(tensor.requires_grad for answer in answers for tensor in answer)


def test_few_earlier_latents_are_pushed_forward(tiny, monkeypatch):
    sae_from, sae_to = (dictionary("topk", f"blocks.{block}.hook_resid_pre", seed=block) for block in (1, 3))
    values, indices = active(tiny, TOKENS, sae_from)
    monkeypatch.setattr(jacobians._BetweenLatents, "_reverse", None)
    compare_latents(tiny, TOKENS, sae_from, sae_to, values[[0, 3]], indices[[0, 3]])


def test_chunks_do_not_show(tiny, monkeypatch):
    monkeypatch.setattr(jacobians, "ROWS", 7)
    monkeypatch.setattr(jacobians, "POSITIONS", 4)
    compare_latents(tiny, TOKENS, *(dictionary("topk", f"blocks.{b}.hook_resid_pre", seed=b) for b in (1, 3)))
    compare_latents(tiny, TOKENS, *(dictionary("topk", f"blocks.{b}.attn.hook_z", seed=b) for b in (1, 2)))


@pytest.mark.parametrize("hook_name", ["blocks.2.hook_resid_pre", "blocks.2.attn.hook_z"])
def test_tokens_to_latents(tiny, hook_name):
    sae = dictionary("topk", hook_name)
    grads, acts, where = jacobians.tokens_to_latents(tiny, TOKENS, sae)
    want_acts, want_where = active(tiny, TOKENS, sae)

    def dense(scales):
        scale = ("hook_embed", lambda embedding, hook: embedding * scales[..., None])
        return sae.encode(dense_run(tiny, TOKENS, [scale], hook_name))[want_where.unbind(1)]

    want = torch.func.jacrev(dense)(torch.ones(TOKENS.shape)).permute(1, 2, 0)
    assert torch.equal(where, want_where)
    agree(acts, want_acts)
    agree(grads, want)


@pytest.mark.parametrize("hook_name", ["blocks.2.hook_resid_pre", "blocks.2.attn.hook_z", "blocks.3.hook_resid_pre"])
def test_latents_to_logits(tiny, hook_name):
    tokens, token_ids, sae = TOKENS[:1], torch.tensor([3, 1, 6]), dictionary("topk", hook_name)
    values, indices = active(tiny, tokens, sae)
    grads, logits = jacobians.latents_to_logits(tiny, tokens, sae, values, indices, token_ids)
    hooks = replacing(tiny, tokens, sae, indices)

    def dense(values):
        return tiny.run_with_hooks(tokens, fwd_hooks=hooks(values))[0, -1, token_ids]

    agree(logits, dense(values))
    agree(grads, torch.func.jacrev(dense)(values))
    if hook_name.endswith("resid_pre"):
        stream = dense_run(tiny, tokens, [], hook_name)
        again, _ = jacobians.latents_to_logits(tiny, tokens, sae, values, indices, token_ids, stream)
        agree(again, grads)


def test_nothing_stays_behind(tiny):
    before = tiny(TOKENS)
    sae_from, sae_to = (dictionary("topk", f"blocks.{block}.hook_resid_pre", seed=block) for block in (1, 3))
    values, indices = active(tiny, TOKENS, sae_from)
    with watch(tiny) as seen:
        jacobians.latents_to_latents(tiny, TOKENS, sae_from, sae_to, values, indices)
        with pytest.raises(KeyError), Segment(tiny, TOKENS[:1], 1, "blocks.1.hook_resid_pre", "blocks.2.no_such_hook"):
            pass
        with (
            pytest.raises(RuntimeError),
            Segment(tiny, TOKENS[:1], 1, "blocks.1.hook_resid_pre", "blocks.2.hook_resid_pre") as segment,
        ):
            segment.run(torch.zeros(3, WIDTH + 1))
    assert seen.hooks_left == 0
    assert torch.equal(tiny(TOKENS), before)


def test_a_passage_runs_only_what_lies_between(tiny):
    with (
        Segment(tiny, TOKENS[:1], 0, "blocks.1.hook_resid_pre", "blocks.2.attn.hook_z") as segment,
        watch(tiny) as seen,
    ):
        segment.run(torch.randn(4, WIDTH))
    assert (seen.passes, seen.blocks, seen.tokens, seen.unembedded) == (1, 3, 4, False)


def test_memory_does_not_grow_with_the_dictionary(tiny):
    wide = [dictionary("topk", f"blocks.{block}.hook_resid_pre", seed=block, d_sae=5000) for block in (1, 3)]
    values, indices = active(tiny, TOKENS, wide[0])
    with watch() as kernel:
        jacobians.latents_to_latents(tiny, TOKENS, *wide, values, indices)
    with watch() as dense:
        dense_latents_to_latents(tiny, TOKENS, *wide, values, indices)
    assert kernel.peak_bytes < dense.peak_bytes / 10


# ---- bad input


def errors_of(model, tokens, sae_from, sae_to, values, indices):
    with pytest.raises(ValueError) as raised:
        jacobians.latents_to_latents(model, tokens, sae_from, sae_to, values, indices)
    return str(raised.value)


def test_bad_input_is_named(tiny):
    sae, later = (dictionary("topk", f"blocks.{block}.hook_resid_pre", seed=block) for block in (1, 3))
    values, indices = active(tiny, TOKENS, sae)
    assert "rank 2" in errors_of(tiny, TOKENS[0], sae, later, values, indices)
    assert "after the earlier" in errors_of(tiny, TOKENS, later, sae, values, indices)
    assert "after the earlier" in errors_of(tiny, TOKENS, sae, sae, values, indices)
    assert "empty" in errors_of(tiny, TOKENS, sae, later, values[:0], indices[:0])
    assert "do not fit together" in errors_of(tiny, TOKENS, sae, later, values, indices[:, :2])
    assert "row-major" in errors_of(tiny, TOKENS, sae, later, values.flip(0), indices.flip(0))
    if first_position(tiny) == 1:
        assert "sink" in errors_of(tiny, TOKENS, sae, later, values, indices * torch.tensor([1, 0, 1]))
    for call in (
        lambda: jacobians.tokens_to_latents(tiny, TOKENS[0], sae),
        lambda: jacobians.latents_to_logits(tiny, TOKENS[0], sae, values, indices, torch.tensor([1])),
        lambda: jacobians.latents_to_logits(tiny, TOKENS, sae, values, indices, torch.tensor([1])),
    ):
        with pytest.raises(ValueError, match=r"tokens must"):
            call()


def test_latents_that_never_fire_are_an_empty_active_set(tiny):
    sae, later = (dictionary("standard", f"blocks.{block}.hook_resid_pre", seed=block) for block in (1, 3))
    later.b_enc.data.fill_(-1e6)
    with pytest.raises(ValueError, match="empty"):
        jacobians.latents_to_latents(tiny, TOKENS, sae, later, *active(tiny, TOKENS, sae))
    with pytest.raises(ValueError, match="empty"):
        jacobians.tokens_to_latents(tiny, TOKENS, later)


def test_dictionaries_that_normalise_their_input_are_refused():
    config = StandardSAEConfig(
        d_in=4, d_sae=8, normalize_activations="layer_norm", metadata=SAEMetadata(hook_name="blocks.1.hook_resid_pre")
    )
    with pytest.raises(ValueError, match="layer_norm"):
        sparse.require_piecewise_linear(StandardSAE(config))


# ---- the default model


@pytest.mark.parametrize("names", [("resid_pre.3", "resid_pre.6"), ("z.16", "z.17")])
def test_default_model(model, dictionaries, names):
    compare_latents(model, model.to_tokens(" Eiffel tower"), *(dictionaries[name] for name in names))
