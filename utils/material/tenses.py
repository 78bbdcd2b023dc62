"""Prompts for chapter 02: the same twenty scenes told in six ways, and other sentences to test what was found on them.

A prompt is an opener, a scene and an auxiliary: "Before long a letter will be sent to the mayor." All categories tell
the same scenes, and every verb is a participle, so that no noun, adjective or verb gives a category away; only
opener and auxiliary do. These two have four tokens together (default model), so that lengths agree too. Every prompt
ends with a full stop: at the last token all prompts are alike, and what tells them apart there is context.
"""

from __future__ import annotations

from collections.abc import Sequence

BASELINE = "neutral"  # timeless: what holds at no time in particular

# What is there, and what happens to it.
SCENES = (
    ("a letter", "sent to the mayor"),
    ("a bridge", "built across the river"),
    ("a cake", "baked in the kitchen"),
    ("a concert", "played in the park"),
    ("a patient", "treated at the clinic"),
    ("a goal", "scored by the visitors"),
    ("a thief", "chased through the market"),
    ("a tree", "planted near the school"),
    ("a song", "sung at the wedding"),
    ("a fence", "painted with a brush"),
    ("a parcel", "carried up the stairs"),
    ("a road", "blocked by the snow"),
    ("a lesson", "taught in the library"),
    ("a comet", "watched through a telescope"),
    ("a boat", "pulled onto the beach"),
    ("a coat", "sewn from old curtains"),
    ("a law", "debated in the parliament"),
    ("a horse", "fed by the farmer"),
    ("a computer", "repaired in the workshop"),
    ("a field", "watered by the rain"),
)

# Category -> four ways of saying when, or whether: what opens the sentence, and the auxiliary.
WORDINGS = {
    "past": (
        ("Not long ago", "was"),
        ("Way back then", "was"),
        ("By then", "had been"),
        ("Before that", "had been"),
    ),
    "present": (
        ("Right now", "is being"),
        ("At present", "is being"),
        ("Even now", "is being"),
        ("For now", "is being"),
    ),
    "future": (
        ("Before long", "will be"),
        ("Later on", "will be"),
        ("Very soon", "will be"),
        ("Soon", "is to be"),
    ),
    "counterfactual": (
        ("Then", "would have been"),
        ("If only", "had been"),
        ("Instead", "could have been"),
        ("Ideally", "should have been"),
    ),
    "hypothetical": (
        ("Suppose", "were to be"),
        ("If so", "would be"),
        ("If needed", "could be"),
        ("Then perhaps", "might be"),
    ),
    "neutral": (
        ("As a rule", "is"),
        ("By and large", "is"),
        ("Always and everywhere", "is"),
        ("In general", "is always"),
    ),
}

# Subject, then a verb: base, past, participle, -ing, -s; and the rest.
_ACTS = (
    ("She", ("walk", "walked", "walked", "walking", "walks"), "home through the rain"),
    ("He", ("write", "wrote", "written", "writing", "writes"), "a poem about the sea"),
    ("The dog", ("bark", "barked", "barked", "barking", "barks"), "at the stranger"),
    ("My aunt", ("lose", "lost", "lost", "losing", "loses"), "the keys to the garden"),
    ("The teacher", ("find", "found", "found", "finding", "finds"), "a coin under the table"),
    ("The singer", ("forget", "forgot", "forgotten", "forgetting", "forgets"), "the words of the song"),
    ("A nurse", ("drive", "drove", "driven", "driving", "drives"), "to the station"),
    ("The child", ("draw", "drew", "drawn", "drawing", "draws"), "a house with a chimney"),
)

_ACTIVE_FORMS = {
    "past": "{subject} {past} {rest}.",
    "present": "{subject} is {ing} {rest}.",
    "future": "{subject} is going to {base} {rest}.",
    "counterfactual": "{subject} would have {participle} {rest}.",
    "hypothetical": "{subject} may {base} {rest}.",
    "neutral": "{subject} {s} {rest}.",
}


def wording_of(prompt: int) -> int:
    """Which of its category's four wordings a prompt has, from the prompt's place in its category."""
    return prompt % 4


def _told(wordings: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    sentences = []
    for number, (thing, happens) in enumerate(SCENES):
        opener, auxiliary = wordings[wording_of(number)]
        sentences.append(f"{opener} {thing} {auxiliary} {happens}.")
    return tuple(sentences)


def _acted(form: str) -> tuple[str, ...]:
    verb_forms = ("base", "past", "participle", "ing", "s")
    return tuple(
        form.format(subject=subject, rest=rest, **dict(zip(verb_forms, verb, strict=True)))
        for subject, verb, rest in _ACTS
    )


# Category -> 20 prompts; prompt i of every category tells scene i.
ALL_TEMPORAL_CATEGORIES: dict[str, tuple[str, ...]] = {
    category: _told(wordings) for category, wordings in WORDINGS.items()
}

# Category -> 8 other sentences, without openers, and with verbs that are active and inflected.
ACTIVE_VOICE: dict[str, tuple[str, ...]] = {category: _acted(form) for category, form in _ACTIVE_FORMS.items()}

# Kind -> four sentences: whether the verb has a past form, and whether the time is past, vary independently.
FORM_AND_TIME = {
    "past form, past time": (
        "Yesterday it rained in the valley.",
        "Last night the guests left early.",
        "In 1815 the king returned to Paris.",
        "Long ago the miller owned a mule.",
    ),
    "past form, other time": (
        "I wish it rained in the valley.",
        "It is high time the guests left.",
        "Imagine the king returned to Paris tomorrow.",
        "If only the miller owned a mule.",
    ),
    "other form, past time": (
        "It has rained in the valley.",
        "The guests have left early.",
        "In 1815 the king returns to Paris.",
        "The miller has long owned a mule.",
    ),
    "other form, other time": (
        "It often rains in the valley.",
        "The guests are leaving early.",
        "The king returns to Paris tomorrow.",
        "The miller wants to own a mule.",
    ),
}
