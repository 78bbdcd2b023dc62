"""The neurons of an MLP as latents: what a transcoder may start from, and how close its rows stay to them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from recipes.model import load_model


@torch.no_grad()
def signed_neurons(layer: int) -> tuple[Tensor, Tensor]:
    """Two latents for every neuron of an MLP, as unit encoder rows and decoder rows `[2 * neurons, 576]`.

    A neuron writes silu(gate @ x) * (up @ x) times its output column. Where its gate is open that is about a product,
    ((gate + up) @ x) ** 2 / 4 - ((gate - up) @ x) ** 2 / 4: so one latent reads gate + up and writes the column, the
    other reads gate - up and writes its opposite.
    """
    mlp = load_model().model.layers[layer].mlp
    gate, up = F.normalize(mlp.gate_proj.weight, dim=1), F.normalize(mlp.up_proj.weight, dim=1)
    column = F.normalize(mlp.down_proj.weight.T, dim=1)
    return F.normalize(torch.cat([gate + up, gate - up]), dim=1), torch.cat([column, -column])


@torch.no_grad()
def shares_near_neurons(layer: int, encoder: Tensor) -> dict[str, float]:
    """Shares of encoder rows `[d_sae, 576]` that read about what a single neuron reads: within |cos| > 0.9 of one gate
    or up row (`one_row`), or of the plane of one neuron's gate and up row (`one_neuron`)."""
    mlp = load_model().model.layers[layer].mlp
    gate, up = F.normalize(mlp.gate_proj.weight, dim=1), F.normalize(mlp.up_proj.weight, dim=1)
    rest = F.normalize(up - (up * gate).sum(1, keepdim=True) * gate, dim=1)  # with gate an orthonormal pair
    rows = F.normalize(encoder, dim=1)
    on_gate, on_up, on_rest = (rows @ directions.T for directions in (gate, up, rest))
    row = torch.maximum(on_gate.abs(), on_up.abs()).amax(1)
    plane = (on_gate.square() + on_rest.square()).sqrt().amax(1)
    return {"one_row": (row > 0.9).float().mean().item(), "one_neuron": (plane > 0.9).float().mean().item()}
