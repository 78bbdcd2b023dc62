"""Other ways of writing chapter 00's warm-up: right ones that must pass, wrong ones that must be caught."""

import torch

from solutions.ch00_start_here import position_norms as reference
from utils import layer_of
from utils.checks.variants import right, wrong


def _stream(model, tokens, hook_name):
    """The activation at the hook, read by a hook of our own."""
    seen = []
    with torch.no_grad():
        model.run_with_hooks(
            tokens,
            fwd_hooks=[(hook_name, lambda activation, hook: seen.append(activation.detach()))],
            stop_at_layer=layer_of(hook_name) + 1,
        )
    return seen[0]


@right("position_norms")
def running_sums(model, prompts, hook_name):
    total, count = [], []
    for prompt in prompts:
        stream = _stream(model, model.to_tokens(prompt), hook_name)[0]
        for position, length in enumerate(stream.square().sum(-1).sqrt().tolist()):
            if position == len(total):
                total.append(0.0)
                count.append(0)
            total[position] += length
            count[position] += 1
    return torch.tensor(total) / torch.tensor(count)


@right("position_norms")
def one_padded_batch(model, prompts, hook_name):
    lengths = torch.tensor([model.to_tokens(prompt).shape[1] for prompt in prompts])
    tokens = torch.full((len(prompts), int(lengths.max())), model.tokenizer.eos_token_id)
    for row, prompt in zip(tokens, prompts, strict=True):
        ids = model.to_tokens(prompt)[0]
        row[: len(ids)] = ids  # on the right, where a causal model cannot see it
    norms = torch.linalg.vector_norm(_stream(model, tokens, hook_name), dim=-1)
    real = torch.arange(tokens.shape[1]) < lengths[:, None]
    return (norms * real).sum(0) / real.sum(0)


@wrong("position_norms", mistake="norm over positions instead of d_model", hint="last axis")
def over_positions(model, prompts, hook_name):
    return torch.stack([_stream(model, model.to_tokens(p), hook_name)[0].norm(dim=0) for p in prompts]).mean(0)


@wrong("position_norms", mistake="the first token left out", hint="special first token")
def without_first_token(model, prompts, hook_name):
    return reference(model, prompts, hook_name)[1:]


@wrong("position_norms", mistake="root mean square instead of length", hint="not an average of squares")
def root_mean_square(model, prompts, hook_name):
    return reference(model, prompts, hook_name) / model.cfg.d_model**0.5


@wrong("position_norms", mistake="padding averaged in", hint="padding")
def padding_averaged_in(model, prompts, hook_name):
    return _stream(model, model.to_tokens(prompts), hook_name).norm(dim=-1).mean(dim=0)


@wrong("position_norms", mistake="cut to the shortest prompt", hint="must not be cut off")
def cut_to_shortest(model, prompts, hook_name):
    norms = [_stream(model, model.to_tokens(prompt), hook_name)[0].norm(dim=-1) for prompt in prompts]
    shortest = min(len(row) for row in norms)
    return torch.stack([row[:shortest] for row in norms]).mean(0)


@wrong("position_norms", mistake="norm of the mean vector", hint="length of the mean")
def norm_of_the_mean(model, prompts, hook_name):
    streams = [_stream(model, model.to_tokens(prompt), hook_name)[0] for prompt in prompts]
    longest = max(len(stream) for stream in streams)
    means = [torch.stack([s[at] for s in streams if at < len(s)]).mean(0) for at in range(longest)]
    return torch.stack(means).norm(dim=-1)


@wrong("position_norms", mistake="the whole model run", hint="stop_at_layer")
def whole_model(model, prompts, hook_name):
    with torch.no_grad():
        model(model.to_tokens(prompts[0]))
    return reference(model, prompts, hook_name)


@wrong("position_norms", mistake="a hook left on the model", hint="remove")
def hook_left_behind(model, prompts, hook_name):
    model.add_hook(hook_name, lambda activation, hook: None)
    return reference(model, prompts, hook_name)


@wrong("position_norms", mistake="the block number assumed", hint="block number")
def always_block_three(model, prompts, hook_name):
    return reference(model, prompts, hook_name.replace(hook_name.split(".")[1], "3", 1))
