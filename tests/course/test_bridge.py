"""Dictionaries on the model: what is attached together, nested, by another name, or fails leaves all as it was."""

import pytest
import torch

from tests.course.hub_stand_in import write_tiny_gpt2

RESIDUAL, ITS_OTHER_NAME, Z = "blocks.1.hook_resid_pre", "blocks.1.hook_in", "blocks.1.attn.hook_z"
WIDTH = 16
TOKENS = torch.tensor([[0, 3, 5, 6]])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The course's bridge of a tiny model."""
    from transformers import AutoTokenizer

    from utils.models.bridge import SAETransformerBridge

    root = tmp_path_factory.mktemp("hub")
    write_tiny_gpt2(root, width=WIDTH)
    source = str(root / "gpt2")
    bridge = SAETransformerBridge.boot_transformers(
        source, tokenizer=AutoTokenizer.from_pretrained(source), device="cpu", dtype=torch.float32
    )
    bridge.enable_compatibility_mode(no_processing=True)
    return bridge.eval().requires_grad_(False)


@pytest.fixture
def transcoder():
    return at("blocks.1.ln2.hook_normalized", writes="blocks.1.hook_mlp_out")


@pytest.fixture(autouse=True)
def as_before(model):
    """A test that fails does not make the later ones fail."""
    yield
    model.reset_saes()
    for point in model.hook_dict.values():
        point.remove_hooks("both", including_permanent=True)


def at(place, seed=0, writes=None):
    """A random dictionary; a transcoder, if it writes elsewhere."""
    from sae_lens import SAE

    config = {
        "architecture": "transcoder" if writes else "standard",
        **({"d_out": WIDTH} if writes else {}),
        "d_in": WIDTH,
        "d_sae": 8,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "hook_z" if place.endswith("hook_z") else "none",
        "metadata": {"hook_name": place, "hook_name_out": writes},
    }
    sae = SAE.from_dict(config)
    generator = torch.Generator().manual_seed(seed)
    sae.load_state_dict(
        {name: torch.randn(value.shape, generator=generator) for name, value in sae.state_dict().items()}
    )
    return sae.eval().requires_grad_(False)


@torch.no_grad()
def logits(model):
    return model(TOKENS)


def calls(model, name):
    """The names under which a hook is called in one run."""
    seen = []
    with torch.no_grad():
        model.run_with_hooks(TOKENS, fwd_hooks=[(name, lambda x, hook: seen.append(hook.name))])
    return seen


def replaced_and_put_back(model, before, *saes):
    """Whether dictionaries change the logits while they are attached together, and nothing afterwards."""
    with model.saes(list(saes)):
        changed = not torch.equal(logits(model), before)
    return changed and torch.equal(logits(model), before) and not model.acts_to_saes


@pytest.mark.parametrize("place", [RESIDUAL, Z])
def test_two_at_one_place(model, place):
    plain, hooks = logits(model), calls(model, place)
    first, second = at(place), at(place, seed=1)
    with model.saes(second):
        alone = logits(model)
    with model.saes([first, second]):
        assert torch.equal(logits(model), alone), "the later one has the place"
    assert not model.acts_to_saes
    assert torch.equal(logits(model), plain)
    assert calls(model, place) == hooks and len(hooks) == 1


@pytest.mark.parametrize("place", [RESIDUAL, Z])
def test_the_same_dictionary_twice(model, place):
    sae, plain = at(place), logits(model)
    reshaping = sae.hook_z_reshaping_mode
    assert replaced_and_put_back(model, plain, sae, sae)
    assert sae.hook_z_reshaping_mode == reshaping


@pytest.mark.parametrize(
    "inner_places", [[RESIDUAL], [RESIDUAL, RESIDUAL], [ITS_OTHER_NAME], [ITS_OTHER_NAME, RESIDUAL]]
)
def test_the_outer_one_is_attached_again(model, inner_places):
    outer, plain = at(RESIDUAL), logits(model)
    with model.saes(outer, use_error_term=False):
        with_outer = logits(model)
        with model.saes([at(place, seed=number + 1) for number, place in enumerate(inner_places)]):
            assert len(model.acts_to_saes) == 1
            assert not torch.equal(logits(model), with_outer)
        assert model.acts_to_saes == {RESIDUAL: outer}
        assert torch.equal(logits(model), with_outer)
    assert torch.equal(logits(model), plain)


def test_one_that_was_added_for_good_is_attached_again_with_its_error_term(model):
    plain = logits(model)
    model.add_sae(at(RESIDUAL), use_error_term=True)
    with_error_term = logits(model)
    torch.testing.assert_close(with_error_term, plain, rtol=1e-4, atol=1e-5)
    model.run_with_saes(TOKENS, saes=[at(RESIDUAL, seed=1), at(ITS_OTHER_NAME, seed=2)])
    assert torch.equal(logits(model), with_error_term)
    model.reset_saes()
    assert torch.equal(logits(model), plain)


def test_after_errors_all_is_as_it_was(model):
    outer, plain = at(RESIDUAL), logits(model)
    with model.saes(outer):
        with_outer = logits(model)
        with pytest.raises(ZeroDivisionError), model.saes([at(RESIDUAL, seed=1), at(Z)]):
            1 / 0  # noqa: B018
        assert torch.equal(logits(model), with_outer)
        with pytest.raises(AttributeError), model.saes([at(ITS_OTHER_NAME, seed=1), "no dictionary"]):
            pass
        assert torch.equal(logits(model), with_outer)
        assert model.acts_to_saes == {RESIDUAL: outer}
    assert torch.equal(logits(model), plain)


def test_all_taken_off_inside(model):
    outer, plain = at(RESIDUAL), logits(model)
    with model.saes(outer):
        with model.saes(at(RESIDUAL, seed=1)):
            model.reset_saes()
            assert torch.equal(logits(model), plain)
        assert model.acts_to_saes == {RESIDUAL: outer}
    assert torch.equal(logits(model), plain)


def test_what_is_to_stay_stays(model):
    with model.saes(at(RESIDUAL), reset_saes_end=False):
        attached = logits(model)
    assert torch.equal(logits(model), attached)


def test_a_place_that_is_not_there_changes_nothing(model, caplog):
    plain, outer = logits(model), at(RESIDUAL)
    with model.saes([outer, at("blocks.1.hook_nowhere")]):
        assert model.acts_to_saes == {RESIDUAL: outer}
        assert "No hook found" in caplog.text
    assert torch.equal(logits(model), plain)


def test_a_transcoder_leaves_others_hooks_where_it_reads(model, transcoder):
    place = transcoder.cfg.metadata
    seen, plain = [], logits(model)
    point = model.hook_dict[place.hook_name]
    point.add_hook(lambda x, hook: seen.append("permanent"), is_permanent=True)
    with model.saes([transcoder, transcoder]):
        assert not torch.equal(logits(model), plain)
        point.add_hook(lambda x, hook: seen.append("added inside"))
    seen.clear()
    assert torch.equal(logits(model), plain)
    assert seen == ["permanent", "added inside"]
    point.remove_hooks("fwd", including_permanent=True)
    assert len(calls(model, place.hook_name_out)) == 1


def test_a_dictionary_where_a_transcoder_reads_or_writes_takes_its_place(model, transcoder):
    place = transcoder.cfg.metadata
    plain = logits(model)
    for name in (place.hook_name, place.hook_name_out):
        other = at(name, seed=1)
        for pair in ([transcoder, other], [other, transcoder]):
            with model.saes(pair[1]):
                alone = logits(model)
            with model.saes(pair):
                assert list(model.acts_to_saes.values()) == [pair[1]]
                assert torch.equal(logits(model), alone)
            assert torch.equal(logits(model), plain)
