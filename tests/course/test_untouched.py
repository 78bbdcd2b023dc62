"""A wrong answer changes something: it is put back, and the failure names it. On the course's model."""

import pytest
import torch

from utils import load
from utils.checks.expect import CheckFailed
from utils.checks.implementations import Implementation, LocalBackend
from utils.checks.untouched import ModuleState, clear

TOKENS = torch.tensor([[1, 504, 8913, 2725]])


@pytest.fixture(scope="module")
def model():
    return load().model


@pytest.fixture(scope="module")
def before(model):
    clear(model)
    return model(TOKENS).clone()


def add_in_place(model):
    model.W_E.add_(1)


def add_to_data(model):
    model.W_E.data /= 2


def exchange_data(model):
    model.blocks[3].ln2.weight.data = torch.ones(576)


def attach_dictionary(model):
    model.add_sae(load().dictionaries["resid_pre.3"])


def attach_transcoder_and_hook(model):
    model.add_sae(load().dictionaries["transcoder.2"])
    model.add_hook("blocks.5.hook_resid_pre", lambda x, hook: 2 * x)


def add_hook(model):
    model.add_hook("blocks.5.hook_resid_pre", lambda x, hook: 2 * x, is_permanent=True)


def add_torch_hook(model):
    model.blocks[4].register_forward_pre_hook(lambda module, args: (2 * args[0], *args[1:]))


def switch_autograd_off(model):
    torch.set_grad_enabled(False)


def add_hook_and_fail(model):
    add_hook(model)
    raise ValueError("too late")


HARM = [
    (add_in_place, "1 weight of the model changed"),
    (add_to_data, "1 weight of the model changed"),
    (exchange_data, "1 weight of the model changed"),
    (attach_dictionary, "1 dictionary attached to the model"),
    (attach_transcoder_and_hook, "1 dictionary attached to the model"),
    (add_hook, "1 hook left on the model"),
    (add_torch_hook, "1 hook left on the model"),
    (add_hook_and_fail, "1 hook left on the model"),
    (switch_autograd_off, "autograd switched"),
]


@pytest.mark.parametrize(("harm", "words"), HARM, ids=[harm.__name__ for harm, _ in HARM])
def test_harm_is_named_and_put_back(model, before, harm, words):
    implementation = Implementation(LocalBackend({"harm": harm}, "test"), "harmful")
    with pytest.raises(CheckFailed, match=words) as caught:
        implementation.harm(model)
    assert caught.value.hint
    assert torch.is_grad_enabled()
    assert torch.equal(model(TOKENS), before)


def test_weights_of_a_dictionary_are_put_back():
    dictionary = load().dictionaries["resid_pre.3"]
    weights = {name: value.clone() for name, value in dictionary.state_dict().items()}
    implementation = Implementation(LocalBackend({"wipe": lambda sae: sae.W_dec[3].zero_()}, "test"), "wiping")
    with pytest.raises(CheckFailed, match="1 weight of a dictionary changed"):
        implementation.wipe(dictionary)
    assert all(torch.equal(value, weights[name]) for name, value in dictionary.state_dict().items())


def test_reading_and_running_change_nothing(model, before):
    def harmless(model, tokens):
        model.run_with_cache(tokens)
        model.run_with_hooks(tokens, fwd_hooks=[("blocks.5.hook_resid_pre", lambda x, hook: 2 * x)])
        return model.run_with_saes(tokens, saes=[load().dictionaries["resid_pre.3"]])

    implementation = Implementation(LocalBackend({"run": harmless}, "test"), "harmless")
    implementation.run(model, TOKENS)
    assert torch.equal(model(TOKENS), before)


def test_looking_is_cheap(model):
    from time import process_time

    state = ModuleState(model)
    began = process_time()
    for _ in range(20):
        state.remember()
        assert not list(state.put_back())
    assert (process_time() - began) / 20 < 0.02
