"""The prompts of chapter 02 differ between categories in the words of tense and mood, and in nothing else."""

import re
from collections import Counter

import numpy as np
import pytest

from utils.material.tenses import ACTIVE_VOICE, ALL_TEMPORAL_CATEGORIES, BASELINE, WORDINGS, wording_of

# Articles, pronouns, prepositions, auxiliaries, conjunctions and adverbs of time and manner: the closed classes. They
# are written down here, not taken from the prompts' own table, so that a noun slipped into an opener would show.
CLOSED_CLASS = """
    a an the this that these those i you he she it we they my your his her its our their and or but if so not no only
    as at by for from in into near of on onto over through to up with across
    am is are was were be been being have has had do does did will would shall should can could may might must
    now then before after ago long once soon later back right even very quite way just still already yet
    always never often usually everywhere present rule general large instead ideally otherwise perhaps maybe suppose
    needed
"""
CHANCE = 1 / 6


def words_of(prompt):
    return re.findall(r"[a-z]+", prompt.lower())


def content_words(prompt):
    return [word for word in words_of(prompt) if word not in CLOSED_CLASS.split()]


def held_out_accuracy(categories, read):
    """Accuracy of a multinomial naive Bayes classifier on scenes that it has not seen: it is trained on 19 of 20."""
    labels = list(categories)
    bags = [[Counter(read(prompt)) for prompt in categories[label]] for label in labels]
    vocabulary = sorted({word for row in bags for bag in row for word in bag})
    counts = np.array([[[bag[word] for word in vocabulary] for bag in row] for row in bags], dtype=float)
    correct = 0
    for scene in range(counts.shape[1]):
        seen = np.delete(counts, scene, axis=1).sum(axis=1) + 1
        log_likelihood = counts[:, scene] @ np.log(seen / seen.sum(axis=1, keepdims=True)).T
        correct += (log_likelihood.argmax(axis=1) == np.arange(len(labels))).sum()
    return correct / counts[..., 0].size


def test_six_categories_of_twenty_different_prompts():
    assert list(ALL_TEMPORAL_CATEGORIES) == [
        "past",
        "present",
        "future",
        "counterfactual",
        "hypothetical",
        "neutral",
    ]
    assert BASELINE in ALL_TEMPORAL_CATEGORIES
    assert all(len(prompts) == 20 for prompts in ALL_TEMPORAL_CATEGORIES.values())
    assert len({prompt for prompts in ALL_TEMPORAL_CATEGORIES.values() for prompt in prompts}) == 120


def test_content_words_leave_a_classifier_at_chance():
    accuracy = held_out_accuracy(ALL_TEMPORAL_CATEGORIES, content_words)
    assert abs(accuracy - CHANCE) <= 0.05, accuracy


def test_the_same_classifier_sees_a_difference_where_there_is_one():
    """With the words of tense and mood it must do well, else chance above says nothing; one leaking noun must show."""
    assert held_out_accuracy(ALL_TEMPORAL_CATEGORIES, words_of) > 0.9
    leaking = dict(ALL_TEMPORAL_CATEGORIES)
    leaking["past"] = tuple(prompt.replace(" a ", " a ruined ", 1) for prompt in leaking["past"])
    assert held_out_accuracy(leaking, content_words) > CHANCE + 0.05


def test_every_scene_has_the_same_content_words_in_every_category():
    for told in zip(*ALL_TEMPORAL_CATEGORIES.values(), strict=True):
        assert len({tuple(content_words(prompt)) for prompt in told}) == 1, told


def test_no_wording_is_used_for_two_categories():
    openings = [wording for wordings in WORDINGS.values() for wording in wordings]
    assert len(set(openings)) == 24
    assert [wording_of(prompt) for prompt in range(5)] == [0, 1, 2, 3, 0]


@pytest.mark.parametrize("categories", [ALL_TEMPORAL_CATEGORIES, ACTIVE_VOICE], ids=["prompts", "active voice"])
def test_all_prompts_end_in_the_same_token(model, categories):
    prompts = [prompt for told in categories.values() for prompt in told]
    assert {model.to_tokens(prompt)[0, -1].item() for prompt in prompts} == {model.to_single_token(".")}


def test_lengths_in_tokens_agree(model):
    for told in zip(*ALL_TEMPORAL_CATEGORIES.values(), strict=True):
        assert len({model.to_tokens(prompt).shape[1] for prompt in told}) == 1, told
