"""What is known about a single latent, as plain data; `utils.dashboards.page` shows it.

Nothing here needs a network, but for the frame that shows Neuronpedia's page of a hub profile's latent. circuitsvis,
sae-dashboard and sae-vis were looked at first: the first puts 1.3 MB of script into every output when it is offline,
and marks by colour alone; the other two want a TransformerLens and a Transformers older than the bridge's, and
scripts from the net.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, SupportsIndex

from utils.dashboards.index import Index, read_index
from utils.errors import CourseError
from utils.hooks import layer_of
from utils.material.public_text import PASSAGE, public_documents
from utils.models.loading import Loaded

if TYPE_CHECKING:
    from jaxtyping import Float
    from sae_lens import SAE
    from torch import Tensor

AROUND = 16  # tokens shown on either side of an example's strongest one
TOP_TOKENS = 10
NEAREST = 6

Ranked = tuple[tuple[str, float], ...]  # tokens with a value each, the most extreme first


@dataclass(frozen=True)
class Example:
    """A stretch of public text.

    Attributes:
        strongest: which of the tokens activates the latent most
        document: name of the document that it is from
    """

    tokens: tuple[str, ...]
    activations: tuple[float, ...]
    strongest: int
    document: str


@dataclass(frozen=True)
class Firing:
    """How often and how strongly a latent is active in the public corpus.

    Attributes:
        counts: active tokens by activation, between neighbouring `edges`
        n_tokens: how many tokens were looked at
    """

    counts: tuple[int, ...]
    edges: tuple[float, ...]
    n_tokens: int

    @property
    def n_active(self) -> int:
        return sum(self.counts)

    @property
    def density(self) -> float:
        """Share of tokens on which the latent is active."""
        return self.n_active / self.n_tokens


@dataclass(frozen=True)
class Latent:
    """The facts on a dashboard.

    Attributes:
        about: what the dictionary describes, in words
        firing, examples: None and empty where there is no index, as for a hub profile
        promoted, suppressed: tokens whose logits the decoder row raises and lowers most; the values are the logits
            of a final stream that points along the row, minus their mean over the vocabulary
        read, ignored: for a transcoder, the tokens whose embeddings the encoder column answers to most and least
        nearest: the latents of the same dictionary with the most similar decoder rows, and the cosines
        neuronpedia: address of Neuronpedia's page, for hub profiles
    """

    dictionary: str
    number: int
    about: str
    firing: Firing | None
    examples: tuple[Example, ...]
    promoted: Ranked
    suppressed: Ranked
    read: Ranked
    ignored: Ranked
    nearest: tuple[tuple[int, float], ...]
    neuronpedia: str | None = None


def facts(loaded: Loaded, dictionary: str | SAE[Any], latent: SupportsIndex) -> Latent:
    """What `dashboard` shows, as plain data."""
    import torch

    name = dictionary if isinstance(dictionary, str) else _name_of(loaded, dictionary)
    sae = loaded.dictionaries[name]
    number = _checked(latent, name, sae.cfg.d_sae)
    index = None if loaded.profile.on_hub else read_index(name)
    with torch.inference_mode():
        promoted, suppressed = _logit_lens(loaded, sae, number)
        read, ignored = _de_embedding(loaded, sae, number) if _is_transcoder(sae) else ((), ())
        return Latent(
            dictionary=name,
            number=number,
            about=_about(sae),
            firing=_firing(index, number) if index else None,
            examples=_examples(loaded, sae, index, number) if index else (),
            promoted=promoted,
            suppressed=suppressed,
            read=read,
            ignored=ignored,
            nearest=_nearest(sae, number),
            neuronpedia=_neuronpedia(sae, number) if loaded.profile.on_hub else None,
        )


def _name_of(loaded: Loaded, dictionary: SAE[Any]) -> str:
    for name, known in loaded.dictionaries.loaded().items():
        if known is dictionary:
            return name
    known = ", ".join(loaded.dictionaries)
    raise CourseError(
        f"This dictionary is none of profile {loaded.profile.name}'s. Give the name of one of them: {known}."
    )


def _checked(latent: SupportsIndex, name: str, d_sae: int) -> int:
    try:
        number = operator.index(latent)
    except TypeError as error:
        raise CourseError(f"A latent is a whole number, not {latent!r}.") from error
    if not 0 <= number < d_sae:
        raise CourseError(f"{name} has the latents 0 to {d_sae - 1}; there is no latent {number}.")
    return number


# ---- the dictionary


def _is_transcoder(sae: SAE[Any]) -> bool:
    return "transcoder" in sae.cfg.architecture()


def _reads_heads(sae: SAE[Any]) -> bool:
    return sae.cfg.metadata.hook_name.endswith("hook_z")


def _about(sae: SAE[Any]) -> str:
    layer, hook = layer_of(sae), sae.cfg.metadata.hook_name
    if _is_transcoder(sae):
        return f"transcoder of the MLP in block {layer}: reads its normalised input, writes its output"
    if _reads_heads(sae):
        return f"attention dictionary: the heads of block {layer} side by side, before the output matrix ({hook})"
    if sae.cfg.architecture() == "temporal":
        return f"temporal dictionary of the residual stream ({hook}); activations are those of the novel codes"
    return f"dictionary of the residual stream ({hook})"


def _nearest(sae: SAE[Any], number: int) -> tuple[tuple[int, float], ...]:
    import torch

    rows = sae.W_dec.float()
    cosines = torch.cosine_similarity(rows, rows[number], dim=1)
    cosines[number] = -torch.inf
    best = cosines.topk(min(NEAREST, len(rows) - 1))
    return tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))


def _neuronpedia(sae: SAE[Any], number: int) -> str | None:
    page = sae.cfg.metadata.neuronpedia_id
    return f"https://www.neuronpedia.org/{page}/{number}?embed=true&embedplots=true" if page else None


# ---- what it writes and reads, in tokens


def _logit_lens(loaded: Loaded, sae: SAE[Any], number: int) -> tuple[Ranked, Ranked]:
    """Tokens raised and lowered most by the decoder row, had the final stream its direction and nothing else.

    The final norm divides by the stream's length, so that only the direction counts, and multiplies by its weights.
    """
    model = loaded.model
    direction = sae.W_dec[number].to(model.W_U.dtype)
    if _reads_heads(sae):
        direction = direction @ model.blocks[layer_of(sae)].attn.W_O.reshape(len(direction), -1)
    direction = direction / direction.norm() * len(direction) ** 0.5  # far from the norm's epsilon
    logits = (model.ln_final(direction[None, None])[0, 0] @ model.W_U).float()
    return _extremes(loaded, logits - logits.mean())


def _de_embedding(loaded: Loaded, sae: SAE[Any], number: int) -> tuple[Ranked, Ranked]:
    """Tokens by the product of the encoder column with the MLP's input, were the stream the token's embedding."""
    model = loaded.model
    inputs = model.blocks[layer_of(sae)].ln2(model.W_E[None])[0]
    return _extremes(loaded, inputs.float() @ sae.W_enc[:, number].float())


def _extremes(loaded: Loaded, values: Float[Tensor, vocab]) -> tuple[Ranked, Ranked]:
    values = values[: len(loaded.tokenizer)]  # an embedding may be padded beyond the vocabulary

    def ranked(largest: bool) -> Ranked:
        best = values.topk(TOP_TOKENS, largest=largest)
        words = (_word(loaded, token) for token in best.indices.tolist())
        return tuple(zip(words, best.values.tolist(), strict=True))

    return ranked(True), ranked(False)


def _word(loaded: Loaded, token: int) -> str:
    return str(loaded.tokenizer.decode([token]))


# ---- what activates it


def _firing(index: Index, number: int) -> Firing:
    return Firing(tuple(index.counts[number].tolist()), tuple(index.edges.tolist()), index.n_tokens)


def _examples(loaded: Loaded, sae: SAE[Any], index: Index, number: int) -> tuple[Example, ...]:
    """The indexed places with the text around them, and the activations there as the model gives them here and now."""
    documents = public_documents()
    stretches = []
    for place in index.places[number].tolist():
        if place >= 0:
            number_of_document, start, position = index.passage_of(place)
            document = documents[number_of_document]
            ids = loaded.tokenizer(document["text"], add_special_tokens=False)["input_ids"]
            end = start + min(position + 1 + AROUND, PASSAGE)
            stretches.append((ids[start:end], position, document["doc"]))
    if not stretches:
        return ()
    acts = _activations(loaded, sae, number, [ids for ids, _, _ in stretches])
    examples = []
    for (ids, position, name), values in zip(stretches, acts.tolist(), strict=True):
        first = max(0, position - AROUND)
        examples.append(
            Example(
                tokens=tuple(_word(loaded, token) for token in ids[first:]),
                activations=tuple(values[first : len(ids)]),
                strongest=position - first,
                document=name,
            )
        )
    # The index was made in half precision, which may swap places that are next to equal.
    return tuple(sorted(examples, key=lambda example: -example.activations[example.strongest]))


def _activations(loaded: Loaded, sae: SAE[Any], number: int, texts: list[list[int]]) -> Float[Tensor, "text length"]:
    """A latent's activations on passages, each run after the first special token, whose position is left out."""
    import torch

    first, hook = loaded.tokenizer.bos_token_id, sae.cfg.metadata.hook_name
    length = max(map(len, texts))
    tokens = torch.tensor(
        [[first, *ids, *[first] * (length - len(ids))] for ids in texts], device=loaded.model.cfg.device
    )
    _, seen = loaded.model.run_with_cache(tokens, names_filter=hook, stop_at_layer=layer_of(sae) + 1)
    stream = seen[hook][:, 1:]
    if _reads_heads(sae) and sae.cfg.reshape_activations == "none":
        stream = stream.flatten(2)  # the dictionary wants the heads side by side
    acts = sae.encode(stream)[..., number].float().cpu()
    special = torch.isin(tokens[:, 1:].cpu(), torch.tensor(loaded.tokenizer.all_special_ids))
    return acts.masked_fill(special, 0.0)
