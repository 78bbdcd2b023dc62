"""The recipes' machinery on small random data: the real dictionaries are judged by `python -m recipes.metrics`."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("sae_lens")

from recipes import harvest, sparse
from recipes.dictionary_set import RECIPES, Recipe, recipe
from recipes.train import BATCH, Batches, Dictionary, Training, initial_dictionary, train

SMALL = replace(recipe("resid_pre.15"), d_sae=256, k=8, learning_rate=2e-3, tokens=80 * BATCH)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPARSE_CIRCUITS_CACHE", str(tmp_path))
    return tmp_path


def planted(rows: int, length: int, seed: int = 0) -> Tensor:
    """Activations `[rows, length, 576]` that are sparse sums of 64 directions, around a mean."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(64, 576, generator=torch.Generator().manual_seed(1))
    codes = torch.rand(rows, length, 64, generator=generator) * (
        torch.rand(rows, length, 64, generator=generator) < 0.08
    )
    return codes @ directions + 0.5


def store(split: str, number: int, **streams: Tensor) -> None:
    folder = harvest.shard_dir(split, number)
    folder.mkdir(parents=True)
    for stream, x in streams.items():
        np.save(folder / "tokens.npy", np.ones((x.shape[0], x.shape[1] + 1), dtype=np.uint16))
        harvest.write_stream(harvest.stream_path(split, number, stream.replace("__", ".")), x)


def dense(found: sparse.Active, d_sae: int) -> Tensor:
    full = torch.zeros(found.n_rows, d_sae)
    full[found.rows, found.columns] = found.values
    return full


def test_active_finds_what_lies_above_the_threshold() -> None:
    pre = torch.randn(20, 50).bfloat16()
    got = dense(sparse.above(pre, 0.7), 50)
    wanted = torch.where(pre.float() > torch.tensor(0.7).bfloat16().float(), pre.float(), 0.0)
    assert torch.equal(got, wanted)


def test_top_keeps_the_positive_ones_of_the_k_largest() -> None:
    pre = torch.randn(20, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    pre[0] = -pre[0].abs()
    pre[0, 4] = 1.0
    largest = pre.float().topk(7, dim=1)
    wanted = torch.zeros(20, 50).scatter_(1, largest.indices[:, :6], largest.values[:, :6].relu())
    tied = largest.values[:, 5] == largest.values[:, 6]
    assert tied.sum() < 10
    assert torch.equal(dense(sparse.top(pre, 6), 50)[~tied], wanted[~tied])


def test_sparse_products_equal_dense_ones() -> None:
    pre, decoder, grad = torch.randn(20, 50).bfloat16(), torch.randn(50, 16), torch.randn(20, 16)
    pre[3] = -1  # a token without active latents
    found = sparse.above(pre, 0.7)
    codes = dense(found, 50)
    torch.testing.assert_close(sparse.decode(found, decoder), codes @ decoder)
    gradients = (grad @ decoder.T)[found.rows, found.columns]
    torch.testing.assert_close(sparse.value_gradients(found, decoder, grad), gradients)
    torch.testing.assert_close(sparse.ByLatent(found, 50).sum_tokens(found.values, grad), codes.T @ grad)


def test_a_step_follows_the_gradient_that_autograd_finds() -> None:
    x = planted(1, BATCH)[0]
    training = Training(SMALL, initial_dictionary(SMALL, x, x))
    d = training.dictionary
    encoder, decoder = d.encoder.detach().clone().requires_grad_(), d.decoder.detach().clone()
    source = (x - d.input_mean) / d.input_scale
    pre = source @ encoder.T
    rounded = d.pre_activations(x).float()
    kept = dense(d.active(rounded.bfloat16()), SMALL.d_sae) > 0
    rebuilt = torch.where(kept, pre, 0.0) @ decoder
    target = (x - d.output_mean) / d.output_scale
    square = target.pow(2).sum(1)
    weight = 1 / (square + square.median())
    (((rebuilt - target).pow(2).sum(1) * weight).sum() / weight.sum() / 2).backward()
    training.step(x, x)
    cosine = torch.cosine_similarity(d.encoder.grad.flatten(), encoder.grad.flatten(), dim=0)
    assert cosine > 0.99
    torch.testing.assert_close(d.decoder.norm(dim=1), torch.ones(SMALL.d_sae))


@pytest.mark.slow
def test_training_explains_planted_data_and_goes_on_where_it_was_killed(cache: Path) -> None:
    store("train", 0, resid_pre__15=planted(128, 255))
    whole = train(SMALL, cache / "whole.pt")
    x, y = next(iter(Batches(SMALL, batch=4096)))
    rebuilt = whole.dictionary(x)
    explained = 1 - (rebuilt - y.float()).pow(2).sum() / (y.float() - y.float().mean(0)).pow(2).sum()
    assert explained > 0.5

    started = Training(SMALL, initial_dictionary(SMALL, *next(iter(Batches(SMALL, batch=16_384)))))
    for x, y in Batches(SMALL):
        if started.steps == 7:
            break
        started.step(x, y)
    started.save(cache / "killed.pt")
    resumed = train(SMALL, cache / "killed.pt")
    torch.testing.assert_close(resumed.dictionary.encoder, whole.dictionary.encoder)


def test_a_later_dictionary_reads_the_spliced_stream_half_of_the_time_and_aims_at_the_true_one(cache: Path) -> None:
    one = replace(recipe("resid_pre.6"), d_sae=256)
    store(
        "train",
        0,
        **{"resid_pre__6": torch.ones(64, 63, 576), "resid_pre__6@resid_pre__3": torch.full((64, 63, 576), 2.0)},
    )
    store("train", 1, resid_pre__6=torch.ones(64, 63, 576))
    x, y = next(iter(Batches(one, batch=8000)))
    assert torch.equal(y, torch.ones_like(y))
    share = (x[:, 0] == 2).float().mean().item()
    assert 0.2 < share < 0.3  # half of the tokens of the one shard that has it


def test_export_opens_in_saelens_with_the_same_reconstruction(cache: Path) -> None:
    from sae_lens import SAE

    from recipes.export import folded, sae_config, write_dictionary

    for name in ("resid_pre.15", "z.16", "transcoder.3"):
        one = replace(recipe(name), d_sae=128, start="random")
        x, y = planted(1, 2048)[0], planted(1, 2048, seed=5)[0]
        trained = initial_dictionary(one, x, y)
        write_dictionary(cache / name, sae_config(one), folded(trained))
        sae = SAE.load_from_disk(cache / name)
        assert sae.cfg.metadata.hook_name == one.hook_name
        seen = x.unflatten(1, (9, 64)) if one.kind == "z" else x
        difference = (sae(seen).reshape(2048, 576) - trained(x)).norm() / trained(x).norm()
        assert difference < 0.04


def test_more_text_leaves_the_rows_of_the_first_block_as_they_are(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    documents = [rng.integers(2, 50, size).astype(np.uint16) for size in (700, 600, 900, 400)]
    monkeypatch.setattr(harvest, "BLOCK_TOKENS", 1500)
    (harvest.corpus_dir()).mkdir(parents=True)
    (harvest.corpus_dir() / "manifest.json").write_text("{}")
    monkeypatch.setattr(harvest, "_tokenised", lambda split: iter(documents[:2] if split == "held_out" else documents))
    (first,), blocks = harvest.token_rows("held_out"), harvest.token_rows("train")
    assert len(blocks) == 2
    for length in harvest.ROW_LENGTHS:
        assert np.array_equal(first[length], blocks[0][length])
        assert (blocks[1][length][:, 0] == harvest.FIRST_TOKEN).all()
    kept = sum(rows[:, 1:].size for block in blocks for rows in block.values())
    assert 2600 - 4 * 62 <= kept <= 2600  # of each document at most 62 tokens are left over


def test_harvest_goes_on_with_what_is_missing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=50,
        hidden_size=576,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=9,
        num_key_value_heads=3,
    )
    tiny = LlamaForCausalLM(config).eval().to(torch.bfloat16)  # a tiny random model: only the streaming is tested here
    rows = np.random.default_rng(0).integers(2, 50, (6, 12)).astype(np.uint16)
    monkeypatch.setattr(harvest, "load_model", lambda _dtype: tiny)
    monkeypatch.setattr(harvest, "shard_rows", lambda _split: [rows[:3], rows[3:]])
    streams = ["resid_pre.1", "z.1", "mlp_in.0", "mlp_out.0", "resid_pre.2"]
    harvest.harvest("train", [0, 1], streams[:3])
    first = harvest.stream_path("train", 0, "z.1").read_bytes()
    harvest.stream_path("train", 1, "z.1").unlink()
    harvest.harvest("train", [0, 1], streams)
    assert harvest.shards_with("train", *streams) == [0, 1]
    assert harvest.stream_path("train", 0, "z.1").read_bytes() == first
    with torch.inference_mode():
        hidden = tiny(torch.from_numpy(rows[3:].astype(np.int64)), output_hidden_states=True).hidden_states
    torch.testing.assert_close(harvest.read_stream("train", 1, "resid_pre.2"), hidden[2][:, 1:])
    got = harvest.read_stream("train", 0, "mlp_in.0")
    torch.testing.assert_close(tiny.model.layers[0].mlp(got), harvest.read_stream("train", 0, "mlp_out.0"))


def test_temporal_training_resumes_and_opens_in_saelens(cache: Path) -> None:
    from sae_lens import SAE

    from recipes.export import config_and_weights, write_dictionary
    from recipes.temporal import train_temporal

    store("train", 0, resid_pre__15=planted(16, 63))
    one = replace(recipe("temporal.15"), d_sae=256, k=8, tokens=4 * 1008)
    training = train_temporal(one)
    assert training.tokens >= one.tokens
    again = train_temporal(one)
    assert again.steps == training.steps
    write_dictionary(cache / "temporal", *config_and_weights(one))
    sae = SAE.load_from_disk(cache / "temporal")
    x = planted(2, 63)
    assert (sae(x) - training.sae(x)).norm() / training.sae(x).norm() < 0.06


def test_rule_scores_a_token_latent_high_and_noise_at_chance() -> None:
    from recipes.metrics import rule_scores

    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(2, 200, (60, 41), generator=generator)
    on_token = (tokens[:, 1:] == 7).float() + (tokens[:, 1:] == 9).float()
    noise = (torch.rand(60, 40, generator=generator) < 0.05).float()
    token_score, noise_score = rule_scores(tokens, torch.stack([on_token, noise], dim=-1))
    assert token_score > 0.9
    assert 0.3 < noise_score < 0.7


def test_a_name_may_ask_for_a_variant_and_another_seed() -> None:
    another = recipe("transcoder.8-seed3")
    assert another == replace(recipe("transcoder.8"), name="transcoder.8-seed3", seed=3)
    assert recipe("transcoder.8-wide-seed3") == replace(another, name="transcoder.8-wide-seed3", d_sae=4096)
    with pytest.raises(KeyError, match=r"transcoder\.9-seed3"):
        recipe("transcoder.9-seed3")
    with pytest.raises(KeyError, match=r"wider.*wide"):
        recipe("transcoder.8-wider")


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(KeyError, match=r"transcoder\.8"):
        recipe("transcoder.9")
    assert all(isinstance(one, Recipe) for one in RECIPES.values())
    assert Dictionary.__doc__


def test_a_training_in_rounds_is_the_training_on_each_part_in_turn(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recipes import rounds

    one = replace(SMALL, name="transcoder.3", kind="transcoder", layer=3, tokens=16 * BATCH)
    parts = [planted(264, 63, seed=number) for number in range(harvest.ROUNDS)]
    monkeypatch.setitem(RECIPES, one.name, one)
    monkeypatch.setattr(harvest, "shard_rows", lambda _split: [None] * harvest.ROUNDS)

    def run(*command: str) -> None:
        number = int(command[command.index("--round") + 1])
        if command[0] == "recipes.harvest":
            store("train", number, mlp_in__3=parts[number], mlp_out__3=parts[number])
        elif number == 5 and not (cache / "killed").exists():
            (cache / "killed").touch()
            raise KeyboardInterrupt
        else:
            train(recipe(command[1]), part=number)

    monkeypatch.setattr(rounds, "run", run)
    monkeypatch.setattr(rounds, "run_all", lambda commands, _at_once: [run(*command) for command in commands])
    with pytest.raises(KeyboardInterrupt):
        rounds.train_in_rounds([one.name], 1)
    assert [rounds.steps_done(one.name), len(harvest.shards_with("train", "mlp_in.3"))] == [10, 1]
    shutil.rmtree(harvest.shard_dir("train", 5))  # harvested again; the other parts are not
    rounds.train_in_rounds([one.name], 1)
    assert [rounds.steps_done(one.name), len(harvest.shards_with("train", "mlp_in.3"))] == [16, 0]


def test_fitted_neurons_read_and_write_what_a_neuron_does() -> None:
    from recipes.model import load_model
    from recipes.neurons import fitted_neurons

    mlp = load_model().model.layers[3].mlp
    neurons = mlp.gate_proj.out_features
    x = torch.randn(4000, 576, generator=torch.Generator().manual_seed(0)) * 3
    reads, writes = fitted_neurons(3, x, 3.0, 1.0)
    assert reads.shape == writes.shape == (2 * neurons, 576)
    with torch.no_grad():
        neuron = torch.nn.functional.silu(x @ mlp.gate_proj.weight[7]) * (x @ mlp.up_proj.weight[7])
    raising, lowering = (torch.corrcoef(torch.stack([neuron, x @ reads[at]]))[0, 1] for at in (7, 7 + neurons))
    assert raising > 0.2
    assert lowering < -0.2
    torch.testing.assert_close(torch.nn.functional.normalize(mlp.down_proj.weight[:, 7], dim=0), writes[7])
    torch.testing.assert_close(writes[7 + neurons], -writes[7])


def test_rows_near_neurons_are_counted() -> None:
    from recipes.model import load_model
    from recipes.neurons import shares_near_neurons

    mlp = load_model().model.layers[3].mlp
    gate, up = (torch.nn.functional.normalize(part.weight, dim=1) for part in (mlp.gate_proj, mlp.up_proj))
    random = torch.randn(1536, 576, generator=torch.Generator().manual_seed(0))
    assert shares_near_neurons(3, gate) == {"one_row": 1, "one_neuron": 1}
    assert shares_near_neurons(3, gate + up)["one_neuron"] == 1
    assert shares_near_neurons(3, torch.cat([up, random])) == {"one_row": 0.5, "one_neuron": 0.5}


def test_probing_finds_the_telling_latent_on_folds_that_did_not_choose_it() -> None:
    from recipes.report_card import probe_accuracy

    generator = torch.Generator().manual_seed(0)
    features, folds = torch.rand(120, 50, generator=generator), torch.arange(120) // 6 % 5
    positive = torch.arange(120) % 6 == 0
    assert abs(probe_accuracy(features, positive, folds, 5) - 0.5) < 0.15
    features[positive, 7] += 1
    assert probe_accuracy(features, positive, folds, 1) > 0.95


def test_principal_directions_explain_more_of_a_gaussian_than_random_ones() -> None:
    from recipes.report_card import Texts, controls

    x = torch.randn(1, 3000, 576, generator=torch.Generator().manual_seed(0)) * torch.linspace(3, 0.1, 576)
    sample = Texts(torch.empty(0), [], torch.empty(0), {"resid_pre.15": x})
    unexplained = {
        name: ((control(x) - x).square().sum() / (x - x.mean(1)).square().sum()).item()
        for name, control in controls(replace(SMALL, d_sae=700, k=64), sample).items()
    }
    assert unexplained["PCA"] < unexplained["random"] < 0.6


def test_slow_codes_are_alike_at_a_distance_and_show_where_passages_join() -> None:
    from recipes.temporal_report import boundary_auroc, lag_similarity, passage_accuracy, token_accuracy

    generator = torch.Generator().manual_seed(0)
    topics, words = torch.randn(8, 32, generator=generator), torch.randn(50, 32, generator=generator)
    topic = torch.arange(40).reshape(8, 5).remainder(8).repeat_interleave(50, dim=1)
    tokens = torch.randint(50, topic.shape, generator=generator)
    slow = topics[topic] + 0.3 * torch.randn(*topic.shape, 32, generator=generator)
    fast = words[tokens] + 0.3 * torch.randn(*topic.shape, 32, generator=generator)
    typical = torch.ones(topic.shape, dtype=torch.bool)
    begins = torch.zeros(topic.shape, dtype=torch.bool)
    begins[:, 50::50] = True
    assert lag_similarity(slow, typical, 8) > 0.5 > 0.1 > lag_similarity(fast, typical, 8)
    assert boundary_auroc(slow, begins) > 0.95
    assert abs(boundary_auroc(fast, begins) - 0.5) < 0.2
    assert token_accuracy(fast, typical, tokens) > 0.95
    one_topic_a_row = slow[:, :50]
    assert passage_accuracy(one_topic_a_row, typical[:, :50]) > 0.95
    assert passage_accuracy(fast[:, :50], typical[:, :50]) < 0.5
