"""Passages, questions and answers of one or two words of the passage, made from templates of our own by a seed.

A passage is one or two sentences, each from a template whose slots are filled with words of `words.py`. The question
asks for one slot; the other sentence is there to be passed over.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from string import Formatter

from pretraining.distinct import draw_distinct
from pretraining.words import CAPITALS, COLOURS, DAYS, JOBS, KINDS_OF_THING, MONTHS, NAMES, number_word


@dataclass(frozen=True)
class Question:
    """One question about one passage; the answer stands in the passage."""

    passage: str
    question: str
    answer: str


SECOND_SENTENCE_SHARE = 0.6

SLOTS = {
    "name": tuple(NAMES),
    "friend": tuple(NAMES),
    "city": tuple(CAPITALS.values()),
    "country": tuple(CAPITALS),
    "day": DAYS,
    "month": MONTHS,
    "colour": tuple(colour for colour in COLOURS if colour != "orange"),
    "count": tuple(number_word(number) for number in range(2, 60)),
    "year": tuple(str(year) for year in range(1750, 2020)),
    "job": JOBS,
    "animal": KINDS_OF_THING["animal"],
    "instrument": KINDS_OF_THING["musical instrument"],
    "fruit": ("pear", "mango", "lemon", "peach", "banana", "melon"),
    "vegetables": ("carrots", "cabbages", "onions", "turnips", "cucumbers", "leeks", "potatoes", "beans"),
    "flower": ("rose", "tulip", "violet", "sunflower", "daisy", "lily"),
    "flowers": ("roses", "tulips", "violets", "sunflowers", "daisies", "lilies"),
    "vehicle": KINDS_OF_THING["vehicle"],
    "room": ("kitchen", "garden", "cellar", "attic", "garage", "bathroom", "hall", "library", "bedroom", "yard"),
    "shop": ("market", "bakery", "pharmacy", "station", "harbour", "museum", "airport", "school", "factory", "mill"),
    "metal": ("iron", "copper", "silver", "gold", "tin", "bronze", "lead"),
    "sport": ("tennis", "football", "chess", "hockey", "rugby", "volleyball", "badminton", "cricket", "golf"),
    "weather": ("rain", "snow", "fog", "hail", "thunder"),
    "language": ("Arabic", "Tamil", "Spanish", "Swahili", "Hindi", "Greek", "Turkish", "Polish", "Thai", "Welsh"),
    "illness": ("fever", "measles", "malaria", "asthma", "influenza", "bronchitis"),
    "hour": tuple(number_word(hour) for hour in range(1, 13)),
}

TEMPLATES: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    (
        "{name} bought {count} {colour} plates at the {shop} on {day}.",
        (
            ("Who bought the plates?", "name"),
            ("How many plates did {name} buy?", "count"),
            ("What colour were the plates?", "colour"),
            ("Where did {name} buy the plates?", "shop"),
            ("When did {name} buy the plates?", "day"),
        ),
    ),
    (
        "The {colour} {animal} belongs to {name}, who keeps it in the {room}.",
        (
            ("What colour is the {animal}?", "colour"),
            ("Whose is the {animal}?", "name"),
            ("Where is the {animal} kept?", "room"),
            ("Which animal does {name} own?", "animal"),
        ),
    ),
    (
        "The painter {name} was born in {city} in {year} and died in {country}.",
        (
            ("Where was {name} born?", "city"),
            ("In which year was {name} born?", "year"),
            ("In which country did {name} die?", "country"),
            ("Which painter died in {country}?", "name"),
        ),
    ),
    (
        "The museum in {city} was opened by {name} in {month} {year} and has {count} rooms.",
        (
            ("Who opened the museum?", "name"),
            ("In which city is the museum?", "city"),
            ("How many rooms does the museum have?", "count"),
            ("In which month was the museum opened?", "month"),
            ("In what year was the museum opened?", "year"),
        ),
    ),
    (
        "{name} plays the {instrument} in an orchestra that travels to {country} every {month}.",
        (
            ("What does {name} play?", "instrument"),
            ("Who plays in the orchestra?", "name"),
            ("Where does the orchestra travel to?", "country"),
            ("When does the orchestra travel?", "month"),
        ),
    ),
    (
        "Because of the {weather}, the train to {city} left {count} minutes late.",
        (
            ("Why was the train late?", "weather"),
            ("Where was the train going?", "city"),
            ("How many minutes late was the train?", "count"),
        ),
    ),
    (
        "The village produces {count} tonnes of {metal} a year, most of which is sold to {country}.",
        (
            ("What does the village produce?", "metal"),
            ("How many tonnes does the village produce?", "count"),
            ("Which country buys most of it?", "country"),
        ),
    ),
    (
        "{name} works as a {job} in {city} and goes to work by {vehicle}.",
        (
            ("What is the job of {name}?", "job"),
            ("In which city does {name} work?", "city"),
            ("How does {name} go to work?", "vehicle"),
            ("Who works as a {job}?", "name"),
        ),
    ),
    (
        "A team from {country} won the {sport} tournament in {city} after beating {count} others.",
        (
            ("Where did the winning team come from?", "country"),
            ("Which sport was played?", "sport"),
            ("Where was the tournament held?", "city"),
            ("How many teams did it beat?", "count"),
        ),
    ),
    (
        "At {hour} o'clock {name} found a {fruit} under the table in the {room}.",
        (
            ("Who found something under the table?", "name"),
            ("What did {name} find?", "fruit"),
            ("In which room was the table?", "room"),
            ("At what time was it found?", "hour"),
        ),
    ),
    (
        "In {month}, {name} planted {count} rows of {vegetables} behind the {shop}.",
        (
            ("What was planted?", "vegetables"),
            ("When was it planted?", "month"),
            ("How many rows were planted?", "count"),
            ("Who planted them?", "name"),
            ("Behind which building was it planted?", "shop"),
        ),
    ),
    (
        "{name} speaks {language} because she grew up in {country} with an aunt called {friend}.",
        (
            ("Which language does {name} speak?", "language"),
            ("Where did {name} grow up?", "country"),
            ("What is the aunt called?", "friend"),
        ),
    ),
    (
        "The doctor told {name} on {day} that the {illness} would be gone within {count} days.",
        (
            ("Who was ill?", "name"),
            ("What illness was it?", "illness"),
            ("On which day was {name} told?", "day"),
            ("Within how many days would it be gone?", "count"),
        ),
    ),
    (
        "{name} sold the {colour} {vehicle} to {friend} for {count} coins.",
        (
            ("Who sold the {vehicle}?", "name"),
            ("Who was the {vehicle} sold to?", "friend"),
            ("What colour was the {vehicle}?", "colour"),
            ("How many coins did {friend} pay?", "count"),
            ("What did {name} sell?", "vehicle"),
        ),
    ),
    (
        "The letter from {city} arrived on {day} and was signed by {name}, a {job}.",
        (
            ("Where did the letter come from?", "city"),
            ("When did the letter arrive?", "day"),
            ("Who signed the letter?", "name"),
            ("What is the job of the person who signed?", "job"),
        ),
    ),
    (
        "The bridge over the river was built of {metal} in {year} by workers from {country}.",
        (
            ("What was the bridge built of?", "metal"),
            ("When was the bridge built?", "year"),
            ("Where did the workers come from?", "country"),
        ),
    ),
    (
        "{name} brought {friend} a {flower} in a {colour} pot last {day}.",
        (
            ("Who brought the flower?", "name"),
            ("Who was given the flower?", "friend"),
            ("Which flower was it?", "flower"),
            ("What colour was the pot?", "colour"),
            ("On which day was it brought?", "day"),
        ),
    ),
    (
        "The class of {count} pupils visits the {shop} every {day} with their teacher {name}.",
        (
            ("How many pupils are in the class?", "count"),
            ("What does the class visit?", "shop"),
            ("On which day is the visit?", "day"),
            ("What is the teacher called?", "name"),
        ),
    ),
    (
        "The ferry from {city} to the island sails at {hour} and carries {count} passengers.",
        (
            ("Where does the ferry come from?", "city"),
            ("At what hour does the ferry sail?", "hour"),
            ("How many passengers does the ferry carry?", "count"),
        ),
    ),
    (
        "{name} and {friend} keep a {animal} and grow {flowers} in the {room}.",
        (
            ("Which animal do they keep?", "animal"),
            ("Which flowers do they grow?", "flowers"),
            ("Where do they grow flowers?", "room"),
            ("Who keeps it with {name}?", "friend"),
        ),
    ),
    (
        "The first railway of {country} was opened in {year} and ran from {city} to a mine of {metal}.",
        (
            ("Which country is the railway in?", "country"),
            ("In what year did the railway open?", "year"),
            ("From which city did the railway run?", "city"),
            ("What did the mine give?", "metal"),
        ),
    ),
    (
        "{name} lost a {colour} glove in the {room}, and {friend} found it {count} days later.",
        (
            ("Who lost a glove?", "name"),
            ("Who found the glove?", "friend"),
            ("What colour was the glove?", "colour"),
            ("Where was the glove lost?", "room"),
            ("After how many days was the glove found?", "count"),
        ),
    ),
)


def short_answers(count: int, seed: int) -> list[Question]:
    """`count` questions over different passages, as many of each template as of any other.

    Raises:
        ValueError: the templates have no `count` different passages.
    """
    rng = random.Random(seed)
    return draw_distinct(
        count,
        lambda number: _question(rng, number % len(TEMPLATES)),
        lambda row: {row.passage},
        what="passages",
    )


def _question(rng: random.Random, template: int) -> Question:
    sentence, questions = TEMPLATES[template]
    names = rng.sample(NAMES, 4)
    filled = _fill(rng, sentence, names[:2])
    question, slot = rng.choice(questions)
    sentences = [sentence.format(**filled)]
    if rng.random() < SECOND_SENTENCE_SHARE:
        other = rng.choice([text for at, (text, _) in enumerate(TEMPLATES) if at != template])
        sentences.insert(rng.randrange(2), other.format(**_fill(rng, other, names[2:])))
    return Question(" ".join(sentences), question.format(**filled), filled[slot])


def _fill(rng: random.Random, sentence: str, names: list[str]) -> dict[str, str]:
    slots = [slot for _, slot, _, _ in Formatter().parse(sentence) if slot]
    return {**{slot: rng.choice(SLOTS[slot]) for slot in slots}, "name": names[0], "friend": names[1]}
