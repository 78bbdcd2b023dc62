"""The neurons of an MLP as latents: what a transcoder may start from, and how close its rows stay to them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from recipes.model import load_model

RIDGE = 1e-3  # of the mean variance of an input


@torch.no_grad()
def fitted_neurons(layer: int, x: Tensor, input_scale: float, output_scale: float) -> tuple[Tensor, Tensor]:
    """Two latents for every neuron of an MLP: encoder rows and unit decoder rows, `[2 * neurons, 576]` each.

    A neuron writes silu(gate @ x) * (up @ x) times its output column, which may be positive or negative, and so one
    latent stands for its positive part and writes the column, another for its negative part and writes the opposite.
    Each reads what linear regression finds for the size of that part over a sample of raw inputs `[n, 576]`, in units
    of these two scales: a mixture of the gate's and the up projection's row.
    """
    mlp = load_model().model.layers[layer].mlp
    written = F.silu(mlp.gate_proj(x)) * mlp.up_proj(x) * mlp.down_proj.weight.norm(dim=0) / output_scale
    parts = torch.cat([written.relu(), (-written).relu()], dim=1)
    source = (x - x.mean(0)) / input_scale
    covariance = source.T @ source / len(x)
    covariance += RIDGE * covariance.diagonal().mean() * torch.eye(len(covariance))
    reads = torch.linalg.solve(covariance, source.T @ (parts - parts.mean(0)) / len(x)).T
    column = F.normalize(mlp.down_proj.weight.T, dim=1)
    return reads, torch.cat([column, -column])


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
