"""A dictionary's arithmetic on the latents that are active or asked for, and on no others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from sae_lens import SAE
    from torch import Tensor

# Past ReLU, threshold or the choice of the k largest, the slope of an active latent is 1: it is linear in the input.
PIECEWISE_LINEAR = {"standard", "topk", "jumprelu", "transcoder", "skip_transcoder", "jumprelu_transcoder"}
FOLDED = {"none", "expected_average_only_in"}  # what SAELens does not compute anew for every input


def require_piecewise_linear(sae: SAE[Any]) -> None:
    """Refuse a dictionary that the fast forms do not fit.

    Raises:
        ValueError: this dictionary's active latents are no linear function of what it describes, or its
            output none of them
    """
    if sae.cfg.architecture() not in PIECEWISE_LINEAR or sae.cfg.normalize_activations not in FOLDED:
        raise ValueError(
            f"the dictionary at {sae.cfg.metadata.hook_name} is of the kind {sae.cfg.architecture()!r} with inputs "
            f"normalised by {sae.cfg.normalize_activations!r}: its active latents are no linear function of its input"
        )


def decoder_rows(sae: SAE[Any], latents: Int[Tensor, " n"]) -> Float[Tensor, "n d_in"]:
    """What one unit of each latent adds to the reconstruction."""
    rows = sae.W_dec[latents]
    return rows / rows.norm(dim=-1, keepdim=True) if _rescales(sae) else rows


def encoder_columns(sae: SAE[Any], latents: Int[Tensor, " n"]) -> Float[Tensor, "d_in n"]:
    """The gradient of each latent, where it is active, with respect to what `process_sae_in` gives."""
    columns = sae.W_enc[:, latents]
    return columns * sae.W_dec[latents].norm(dim=-1) if _rescales(sae) else columns


def encode_columns(sae: SAE[Any], x: Float[Tensor, "... d_in"], latents: Int[Tensor, " n"]) -> Float[Tensor, "... n"]:
    """The pre-activations of some latents: where a latent is active, its activation."""
    bias = sae.b_enc[latents] * (sae.W_dec[latents].norm(dim=-1) if _rescales(sae) else 1)
    return sae.process_sae_in(x) @ encoder_columns(sae, latents) + bias


def decode_active(
    sae: SAE[Any],
    values: Float[Tensor, " nnz"],
    positions: Int[Tensor, " nnz"],
    rows: Float[Tensor, "nnz d_in"],
    length: int,
) -> Float[Tensor, "length d_in"]:
    """The reconstruction at `length` positions from the active latents' decoder rows; heads stay side by side."""
    return sae.b_dec.expand(length, -1).index_add(0, positions, values[:, None] * rows)


def _rescales(sae: SAE[Any]) -> bool:
    """Whether activations are measured in units of the decoder row's length."""
    return getattr(sae.cfg, "rescale_acts_by_decoder_norm", False)
