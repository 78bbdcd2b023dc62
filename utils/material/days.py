"""Words and prompts for chapter 01: two calendars, sentences that end in a day or a month, and a task about them.

A template is a sentence with one `{}`, the place of the day or month. In these the sentence ends there, so that the
last token is the word itself.
"""

from __future__ import annotations

from collections.abc import Sequence

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)

DAY_TEMPLATES = (
    "Today is {}",
    "The meeting is on {}",
    "See you next {}",
    "It happened last {}",
    "The shop is closed every {}",
    "My favourite day of the week is {}",
    "We will talk again on {}",
    "She was born on a {}",
)

MONTH_TEMPLATES = (
    "The month is {}",
    "The meeting is in {}",
    "See you next {}",
    "It happened last {}",
    "The shop is closed every {}",
    "My favourite month of the year is {}",
    "We will talk again in {}",
    "She was born in {}",
)

SUCCESSOR_TEMPLATE = "Monday, Tuesday. Thursday, Friday. {},"
DAY_POSITION = -2  # where the asked day stands in a successor prompt: the last token is the comma


def successor_prompts(days: Sequence[str] = DAYS) -> list[str]:
    """A prompt for each day that asks for the next one: two worked examples, then the day and a comma."""
    return [SUCCESSOR_TEMPLATE.replace("{}", day) for day in days]
