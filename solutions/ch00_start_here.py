"""Chapter 00: the length of the residual stream, position by position."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from utils import layer_of


def position_norms(model, prompts: list[str], hook_name: str) -> Float[Tensor, " longest"]:
    """Mean length of the activation vectors at each token position.

    The model runs no further than the block in the hook's name, and no hook stays on it.

    Args:
        model: the loaded model, `course.model`.
        prompts: one or more texts; `model.to_tokens` makes tokens of them and puts the special first token in front.
        hook_name: where to read, for instance "blocks.20.hook_resid_pre", an activation of shape [batch, seq, d].

    Returns:
        One number per position of the longest prompt, position 0 being the special first token: the Euclidean norm over
        d, averaged over those prompts that are long enough to have the position.
    """
    # BEGIN SOLUTION
    norms = []
    for prompt in prompts:
        tokens = model.to_tokens(prompt)
        with torch.no_grad():
            _, cache = model.run_with_cache(tokens, names_filter=hook_name, stop_at_layer=layer_of(hook_name) + 1)
        norms.append(cache[hook_name][0].norm(dim=-1))
    return pad_sequence(norms, batch_first=True, padding_value=float("nan")).nanmean(dim=0)
    # END SOLUTION
