"""Oracles that several chapters' checks use: the model's activations by plain torch hooks on its modules, latents from
a dictionary's weights, small random dictionaries, sparse parts. Nothing here uses what the exercises ask for."""

import secrets
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from functools import cache, lru_cache
from typing import Any

import torch

from utils import first_position, layer_of
from utils.checks import expect

Change = Callable[[torch.Tensor], torch.Tensor | None]


def fresh_seed() -> int:
    """The seed of inputs that no answer can anticipate: another one at every call. Name it in the check's `why`."""
    return secrets.randbelow(1_000_000)


def mistake_in_all(
    function: Callable[..., Any],
    cases: Iterable[tuple],
    right: Callable[..., float],
    mistakes: Iterable[tuple[Callable[..., float], str]],
) -> str | None:
    """The hint of the known mistake that explains what a function gives for every case.

    One number alone may be hit by coincidence; the numbers of several cases are hardly.

    Args:
        function: what is under test; it gives a number.
        cases: its arguments, several times.
        right: gives the right number.
        mistakes: functions that give a wrong one, with their hints.

    Returns:
        The hint, or None where no mistake explains everything, or nothing is wrong.
    """
    cases = list(cases)

    def answers(answer: Callable[..., Any]) -> torch.Tensor:
        return torch.tensor([_number(answer(*case)) for case in cases], dtype=torch.double)

    def same(one: torch.Tensor, other: torch.Tensor) -> bool:
        return expect.agree(one, other, rtol=0, atol=1e-6)

    got, want = answers(function), answers(right)
    if same(got, want):
        return None
    return expect.mistake_in(got, want, ((answers(wrong), hint) for wrong, hint in mistakes), same)


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        return torch.nan


# The model's activations.


def _module_at(model: Any, place: str) -> tuple[torch.nn.Module, bool]:
    """The module at a hook point, and whether the activation goes into it (or else comes out of it)."""
    block = model.blocks[layer_of(place)]
    modules = {
        "hook_resid_pre": (block, True),
        "hook_resid_mid": (block.ln2, True),
        "hook_resid_post": (block, False),
        "attn.hook_z": (block.attn.o, True),
        "attn.hook_pattern": (block.attn.hook_pattern, False),
        "ln2.hook_normalized": (block.mlp, True),
        "mlp.hook_in": (block.mlp, True),
        "hook_mlp_out": (block.mlp, False),
    }
    return modules[place.split(".", 2)[2]]


def torch_hook(model: Any, place: str, function: Change) -> Any:
    """Hang a torch hook on the module at a hook point.

    Args:
        model: the model.
        place: the hook point's full name, such as "blocks.3.hook_resid_pre".
        function: gets the activation, and returns what takes its place, or None. z comes with its heads side by side.

    Returns:
        The hook's handle; used in a `with`, it takes the hook off again.
    """
    module, goes_in = _module_at(model, place)

    def enter(_: Any, args: tuple, kwargs: dict) -> Any:
        if args:
            changed = function(args[0].flatten(2) if place.endswith("hook_z") else args[0])
            return None if changed is None else ((changed, *args[1:]), kwargs)
        key = next(iter(kwargs))
        changed = function(kwargs[key])
        return None if changed is None else (args, kwargs | {key: changed})

    def leave(_: Any, args: tuple, out: Any) -> Any:
        whole = isinstance(out, tuple)
        changed = function(out[0] if whole else out)
        return (changed, *out[1:]) if whole and changed is not None else changed

    if goes_in:
        return module.register_forward_pre_hook(enter, with_kwargs=True)
    return module.register_forward_hook(leave)


def run(
    model: Any,
    tokens: torch.Tensor,
    until: int | None = None,
    changes: Mapping[str, Change] | None = None,
    **options: Any,
) -> torch.Tensor:
    """Run the model. Autograd can follow what `changes` put in; an untouched run is remembered.

    Args:
        model: the model.
        tokens: [batch, seq].
        until: the block to stop in front of; None runs to the end.
        changes: hook points and what to do there, see `torch_hook`.
        options: more arguments of the model's call.

    Returns:
        The stream that enters block `until` [batch, seq, d_model], or logits [batch, seq, d_vocab].
    """
    if not changes and not options:
        return _untouched(model, tuple(map(tuple, tokens.tolist())), until).clone()
    with ExitStack() as hooks:
        for place, function in (changes or {}).items():
            hooks.enter_context(torch_hook(model, place, function))
        return model(tokens, stop_at_layer=until, **options)


@lru_cache(maxsize=64)
def _untouched(model: Any, rows: tuple[tuple[int, ...], ...], until: int | None) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor(rows), stop_at_layer=until)


def read(model: Any, tokens: torch.Tensor, place: str, **options: Any) -> torch.Tensor:
    """The activation at a hook point of the untouched model, [batch, seq, ...]; what was read once is remembered.

    Args:
        model: the model.
        tokens: [batch, seq].
        place: the hook point's full name.
        options: more arguments of the model's call; with any of them, nothing is remembered.
    """
    if options:
        return _read(model, tokens, place, **options)
    return _remembered(model, tuple(map(tuple, tokens.tolist())), place).clone()


@lru_cache(maxsize=256)
def _remembered(model: Any, rows: tuple[tuple[int, ...], ...], place: str) -> torch.Tensor:
    return _read(model, torch.tensor(rows), place)


def _read(model: Any, tokens: torch.Tensor, place: str, **options: Any) -> torch.Tensor:
    activations: list[torch.Tensor] = []

    def keep(activation: torch.Tensor) -> None:
        activations.append(activation.detach().clone())

    until = layer_of(place) + 1
    with torch.no_grad():
        run(model, tokens, until if until < model.cfg.n_layers else None, {place: keep}, **options)
    return activations[0]


def last_rows(model: Any, prompts: Iterable[str], place: str) -> torch.Tensor:
    """The stream [n, d_model] at the last token of each prompt, read one by one; no prompt is padded."""
    return torch.stack([read(model, model.to_tokens(prompt), place)[0, -1] for prompt in prompts])


def last_column(model: Any, prompts: Iterable[str], place: str, side: str) -> torch.Tensor:
    """The stream [n, d_model] in the last column of a batch padded on one side, by a model that sees the padding."""
    return read(model, model.to_tokens(list(prompts), padding_side=side), place)[:, -1]


# Dictionaries.


@cache
def stand_in(
    place: str,
    d_sae: int = 48,
    kind: str = "topk",
    k: int = 6,
    seed: int = 0,
    biases: float = 1.0,
    centred: bool = False,
) -> Any:
    """A small dictionary of random directions: it reconstructs badly, which makes a mixed-up stream easy to see.

    Args:
        place: the hook point that it reads, in the stream or z (576 numbers).
        d_sae: how many latents it has.
        kind: "topk" or "standard" (ReLU).
        k: how many latents are active at a token, where it is a TopK.
        seed: another seed, other directions.
        biases: how large they are, as their standard deviation.
        centred: whether the decoder's bias is taken off before encoding.

    Returns:
        A dictionary that wants no gradients.
    """
    from sae_lens import SAE

    generator = torch.Generator().manual_seed(seed + 100 * layer_of(place))
    rows = torch.nn.functional.normalize(torch.randn(d_sae, 576, generator=generator), dim=1)
    sae = SAE.from_dict(
        {
            "architecture": kind,
            "d_in": 576,
            "d_sae": d_sae,
            "dtype": "float32",
            "device": "cpu",
            "apply_b_dec_to_input": centred,
            "normalize_activations": "none",
            "reshape_activations": "hook_z" if place.endswith("hook_z") else "none",
            "metadata": {"hook_name": place},
            **({"k": k} if kind == "topk" else {}),
        }
    )
    weights = {"W_dec": rows, "W_enc": 2 * rows.T.contiguous()}
    weights["b_enc"] = biases * torch.randn(d_sae, generator=generator)
    weights["b_dec"] = biases * torch.randn(576, generator=generator)
    sae.load_state_dict(weights)
    return sae.eval().requires_grad_(False)


def encode(sae: Any, activation: torch.Tensor) -> torch.Tensor:
    """A dictionary's latents by their definition, from its weights.

    Args:
        sae: a TopK, ReLU or JumpReLU dictionary or transcoder.
        activation: what it reads, [..., d_in]; computed with in double precision.

    Returns:
        [..., d_sae]: pre-activations where they are positive and the k largest, or above the threshold; else 0.
    """
    seen = activation.double() - (sae.b_dec.double() if sae.cfg.apply_b_dec_to_input else 0)
    before = seen @ sae.W_enc.double() + sae.b_enc.double()
    k, threshold = getattr(sae.cfg, "k", None), getattr(sae, "threshold", None)
    if k is not None:
        top = before.topk(k, dim=-1)
        before = torch.zeros_like(before).scatter(-1, top.indices, top.values)
    floor = torch.zeros(()) if threshold is None else threshold.clamp_min(0)
    return torch.where(before > floor, before, 0.0).to(activation.dtype)


def decode(sae: Any, dense: torch.Tensor) -> torch.Tensor:
    """What a dictionary makes of latents [..., d_sae], from its weights, in double precision: [..., d_out]."""
    return (dense.double() @ sae.W_dec.double() + sae.b_dec.double()).to(dense.dtype)


def counted(model: Any, dense: torch.Tensor) -> torch.Tensor:
    """Latents [batch, seq, d_sae] with those zeroed that do not count: before `first_position(model)`."""
    first = first_position(model)
    return torch.cat([torch.zeros_like(dense[:, :first]), dense[:, first:]], dim=1)


def from_first(model: Any, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """`before` [batch, seq, ...] up to `first_position(model)`, `after` from there on."""
    first = first_position(model)
    return torch.cat([before.expand_as(after)[:, :first], after[:, first:]], dim=1)


# Sparse parts.


def sparse(dense: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, tuple[int, ...]]:
    """(values [nnz], indices [nnz, rank], shape) of what is not zero, in row-major order."""
    indices = dense.nonzero()
    return dense[indices.unbind(-1)], indices, tuple(dense.shape)


def dense_of(values: torch.Tensor, indices: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """The dense tensor of sparse parts; autograd can follow.

    Args:
        values: [nnz]; or several cases of one prompt, [cases, nnz].
        indices: [nnz, rank].
        shape: of the dense tensor; for several cases, that of one of them, beginning with 1.

    Returns:
        A tensor of that shape, or [cases, ...].
    """
    if values.ndim == 2:
        return torch.cat([dense_of(row, indices, shape) for row in values])
    return torch.zeros(shape, dtype=values.dtype).index_put(indices.unbind(-1), values)


def parts(acts: Any, name: str) -> tuple[torch.Tensor, torch.Tensor, tuple[int, ...]]:
    """Demand a SparseTensor of chapter 03 (or its three parts).

    Args:
        acts: what was returned.
        name: what it is, in the exercise's words.

    Returns:
        (values, indices, shape).

    Raises:
        CheckFailed: it is something else.
    """
    if isinstance(acts, tuple | list) and len(acts) == 3:
        return tuple(acts)
    expect.that(
        isinstance(acts, expect.Opaque),
        expected=f"`{name}` as your SparseTensor of chapter 03",
        returned=acts,
        why="values, positions and shape belong together",
        hint="Wrap the dense activations: `mine.SparseTensor.from_dense(dense)`.",
    )
    return acts.values, acts.indices, tuple(acts.shape)


def same_entries(acts: Any, want: torch.Tensor, *, name: str, why: str, mistakes: expect.Mistakes = ()) -> None:
    """Demand a SparseTensor with the entries of a dense tensor, in row-major order.

    Args:
        acts: what was returned.
        want: the dense tensor.
        name: what it is, in the exercise's words.
        why: how the checker knows.
        mistakes: known wrong answers, dense too, with their hints; places and values must both be theirs.

    Raises:
        CheckFailed: shape, places or values are others.
    """
    values, indices, shape = parts(acts, name)

    def same(one: tuple, other: tuple) -> bool:
        (one_values, one_places, _), (other_values, other_places, _) = one, other
        return expect.is_same(one_places, other_places) and expect.agree(one_values, other_values, rtol=1e-3, atol=1e-3)

    def sparse_mistakes() -> Any:
        for wrong, hint in mistakes() if callable(mistakes) else mistakes:
            yield sparse(wrong() if callable(wrong) else wrong), hint

    wanted = sparse(want)
    if same((values, indices, shape), wanted) and tuple(shape) == wanted[2]:
        return
    hint = expect.mistake_in((values, indices, shape), wanted, sparse_mistakes, same)
    expect.equal(tuple(shape), wanted[2], name=f"`{name}.shape`", why="(batch, seq, d_sae)", hint=hint)
    expect.equal(indices, wanted[1], name=f"`{name}.indices`", why=why, hint=hint)
    expect.close(values, wanted[0], name=f"`{name}.values`", why=why, hint=hint, rtol=1e-3, atol=1e-3)
