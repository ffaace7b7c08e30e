"""The families of templates of `inference_rows.py`: a hypothesis, and premises of each label for it.

The premises that entail a hypothesis and those that contradict it are built alike where that can be, with one thing
exchanged; families in which they cannot put their hypothesis as a denial half of the time, so that each wording of a
premise is found under both labels. A neutral premise names the same people and things in another part.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from pretraining.words import (
    ADJUNCTS,
    BUYING,
    CAPITALS,
    CHOICES,
    COLOURS,
    COMPARATIVES,
    CROWD_DEEDS,
    CROWDS,
    DAYS,
    DEEDS,
    EVENTS,
    GARMENTS,
    GIFTS,
    JOBS,
    KINDS_OF_THING,
    LOOKS,
    NAMES,
    PASTIMES,
    QUALITIES,
    RELATIONS,
    SITES,
    SKILLS,
    TRANSITIVES,
    number_word,
    with_article,
)

Choices = tuple[str, list[str], list[str], list[str]]
"""A hypothesis, and the premises that entail it, leave it open and contradict it."""


def _people(rng: random.Random, count: int) -> list[str]:
    return rng.sample(NAMES, count)


def _place(rng: random.Random) -> Choices:
    p, q = _people(rng, 2)
    here, there = rng.sample(SITES, 2)
    act = rng.choice(PASTIMES)

    def at(site: str) -> list[str]:
        return [
            f"{p} is {act} {site}",
            f"{p} and {q} are {act} {site}",
            f"{p}, who is {site}, is {act}",
            f"{p} is {site}, and {q} is {act}",
        ]

    neutral = [
        f"{p} is {act}",
        f"{q} is {act} {here}",
        f"{p} was {act} {there} yesterday",
        f"{p} will be {here} tomorrow, {q} says",
        f"{p} is {act}, and {q} is {here}",
        f"{q}, who is {there}, is {act} and thinks of {p}",
    ]
    return f"{p} is {here}", at(here), neutral, [*at(there), f"{p} is {act}, but not {here}"]


def _quality(rng: random.Random) -> Choices:
    (p,) = _people(rng, 1)
    thing, other = rng.sample(sorted(QUALITIES), 2)
    quality, opposite = rng.sample(rng.choice(QUALITIES[thing]), 2)

    def being(adjective: str) -> list[str]:
        return [
            f"the {thing} that {p} saw {rng.choice(ADJUNCTS)} is very {adjective}",
            f"{p} likes the {thing} because it is {adjective}",
            f"the {thing} is so {adjective} that {p} noticed it at once",
            f"the {thing} is {adjective}, as {p} can see",
            f"{p} knows that the {thing} is {adjective}",
        ]

    neutral = [
        f"{p} likes the {thing} because it is not far away",
        f"the {other} that {p} saw is very {quality}",
        f"{p} asked whether the {thing} was {quality} or {opposite}",
        f"{p} does not know whether the {thing} is {quality}",
        f"{p} looked at the {thing} {rng.choice(ADJUNCTS)}",
    ]
    if rng.random() < 0.6:
        return f"the {thing} is {quality}", being(quality), neutral, being(opposite)
    return f"the {thing} is not {quality}", being(opposite), neutral, being(quality)


def _kind_of_thing(rng: random.Random) -> Choices:
    p, q = _people(rng, 2)
    kind = rng.choice(sorted(KINDS_OF_THING))
    thing, second = rng.sample(KINDS_OF_THING[kind], 2)
    (past, base), when, look = rng.choice(BUYING), rng.choice(ADJUNCTS), rng.choice(LOOKS)
    wanted = kind if rng.random() < 0.6 else thing
    entailing = [
        f"{p} {past} {with_article(look)} {thing} {when}",
        f"{when}, {p} {past} {with_article(thing)} and {with_article(second)}",
        f"{p} and {q} each {past} {with_article(thing)}",
    ]
    neutral = [
        f"{p} {past} something {look} {when}",
        f"{q} {past} {with_article(look)} {thing} {when}",
        f"{p} wanted to {base} {with_article(thing)} {when}",
        f"{p} saw {with_article(look)} {thing} {when}",
    ]
    if wanted == thing:
        neutral.append(f"{p} {past} {with_article(look)} {kind} {when}")
    contradicting = [
        f"{p} did not {base} {with_article(wanted)} of any sort",
        f"{p} {past} nothing at all, and never has",
        f"{p} has never been able to {base} {with_article(wanted)}",
    ]
    if rng.random() < 0.5:
        return f"{p} {past} {with_article(wanted)}", entailing, neutral, contradicting
    return f"{p} did not {base} {with_article(wanted)}", contradicting, neutral, entailing


def _number(rng: random.Random) -> Choices:
    crowd, others = rng.sample(CROWDS, 2)
    past, base = rng.choice(CROWD_DEEDS)
    bound = rng.randrange(5, 80)
    low, high = rng.randrange(2, bound), rng.randrange(bound + 2, 100)

    def came(number: int) -> list[str]:
        return [
            f"{number_word(number)} {crowd} {past}",
            f"{number_word(number)} {crowd} {past} {rng.choice(ADJUNCTS)}",
            f"the number of {crowd} who {past} was {number_word(number)}",
        ]

    neutral = [
        f"{number_word(high)} {others} {past}",
        f"{number_word(low)} {others} {past} {rng.choice(ADJUNCTS)}",
        f"many {crowd} {past} {rng.choice(ADJUNCTS)}",
        f"{number_word(high)} {crowd} were asked to {base}",
    ]
    form = rng.randrange(3)
    if form == 0:
        return f"more than {number_word(bound)} {crowd} {past}", came(high), neutral, came(low)
    if form == 1:
        return f"fewer than {number_word(bound)} {crowd} {past}", came(low), neutral, came(high)
    return f"exactly {number_word(bound)} {crowd} {past}", came(bound), neutral, [*came(low), *came(high)]


def _passive(rng: random.Random) -> Choices:
    p, q, r = _people(rng, 3)
    past, participle, base = rng.choice(TRANSITIVES)
    when = rng.choice(ADJUNCTS)
    active, passive = f"{p} {past} {q}", f"{q} was {participle} by {p}"
    entailing = [
        f"{passive} {when}",
        f"{p} {past} {q} {when}",
        f"{p} {past} both {q} and {r}",
        f"{q} and {r} were {participle} by {p}",
        f"it was {p} who {past} {q}",
    ]
    neutral = [
        f"{p} was {participle} by {q} {when}",
        f"{q} {past} {p} {when}",
        f"{r} was {participle} by {p}",
        f"{r} {past} both {p} and {q}",
        f"it was {q} who {past} {p}",
    ]
    contradicting = [
        f"{q} was not {participle} by {p} {when} or ever",
        f"{p} never {past} {q}",
        f"{p} {past} {r} but not {q}",
        f"it was not {p} who {past} {q}",
        f"{q} was {participle} by {r} and by nobody else",
    ]
    if rng.random() < 0.5:
        return rng.choice((active, passive)), entailing, neutral, contradicting
    return (
        rng.choice((f"{p} did not {base} {q}", f"{q} was not {participle} by {p}")),
        contradicting,
        neutral,
        entailing,
    )


def _order(rng: random.Random) -> Choices:
    p, q, r = _people(rng, 3)
    verb = rng.choice(("left", "arrived", "woke up", "finished", "spoke", "fell asleep", "sat down", "came home"))
    early, late = sorted(rng.sample(range(1, 12), 2))

    def first(one: str, two: str) -> list[str]:
        return [
            f"{one} {verb} at {number_word(early)} and {two} at {number_word(late)}",
            f"{two} {verb} at {number_word(late)}, {one} at {number_word(early)}",
            f"{one} {verb} first, and {two} an hour later",
            f"{two} {verb} long after {one}",
            f"{one} {verb} earlier than {two}",
        ]

    neutral = [
        f"{p} and {q} both {verb} in the afternoon",
        f"{p} {verb} at {number_word(late)}, and so did {r}",
        f"{r} {verb} before {rng.choice((p, q))}",
        f"{q} {verb} at {number_word(early)} and {r} at {number_word(late)}",
    ]
    hypothesis = rng.choice((f"{p} {verb} before {q}", f"{q} {verb} after {p}"))
    return hypothesis, first(p, q), neutral, first(q, p)


def _comparison(rng: random.Random) -> Choices:
    p, q, r = _people(rng, 3)
    more, less = rng.sample(rng.choice(COMPARATIVES), 2)

    def above(one: str, two: str) -> list[str]:
        return [
            f"{two} is {less} than {one}",
            f"{one} is much {more} than {two}",
            f"{one} is {more} than {r}, who is {more} than {two}",
            f"of {one} and {two}, {two} is the {less}",
        ]

    neutral = [
        f"{p} is {more} than {r}",
        f"{r} is {less} than {p} and {q}",
        f"{r} is {more} than both {p} and {q}",
        f"{q} is {less} than {r}",
        f"nobody knows which of {p} and {q} is {more}",
    ]
    return f"{p} is {more} than {q}", above(p, q), neutral, above(q, p)


def _quantity(rng: random.Random) -> Choices:
    crowd, others = rng.sample(CROWDS, 2)
    past, base = rng.choice(CROWD_DEEDS)
    few = number_word(rng.randrange(2, 10))
    place = rng.choice(("from the north", "in our street", "of the school", "in the photograph", "at the lake"))
    who = f"{crowd} {place}"
    every = [f"each of the {who} {past}", f"every one of the {who} {past}", f"the {who} all {past}"]
    none = [f"not one of the {who} {past}", f"the {who} did not {base}, not even one", f"nobody among the {who} {past}"]
    some = [f"{few} of the {who} {past}", f"a small group of the {who} {past}"]
    open_ = [f"the {who} were asked to {base}", f"all of the {others} {place} {past}", f"none of the {others} {past}"]
    form = rng.randrange(3)
    if form == 0:
        partial = [f"only {few} of the {who} {past}", f"{few} of the {who} did not {base}"]
        return f"all of the {who} {past}", every, [*open_, f"at least {few} of the {who} {past}"], [*none, *partial]
    if form == 1:
        return f"some of the {who} {past}", [*every, *some], open_, none
    return f"none of the {who} {past}", none, open_, [*every, *some]


def _gift(rng: random.Random) -> Choices:
    p, q, r = _people(rng, 3)
    gift, other = (with_article(word) for word in rng.sample(GIFTS, 2))
    when = rng.choice(ADJUNCTS)
    entailing = [
        f"{p} gave {gift} to {q} {when}",
        f"{q} was given {gift} by {p}",
        f"{when}, {q} got {gift} and {other} from {p}",
        f"{p} gave {q} {gift}, and {r} {other}",
    ]
    neutral = [
        f"{q} gave {gift} to {p} {when}",
        f"{p} was given {gift} by {q}",
        f"{p} gave {gift} to {r} {when}",
        f"{p} promised {q} {gift}",
    ]
    contradicting = [
        f"{p} gave nothing to {q}",
        f"{q} was never given anything by {p}",
        f"{p} refused to give {q} {gift}",
        f"{p} gave {other} to {r}, but {q} got nothing from {p}",
    ]
    if rng.random() < 0.5:
        return rng.choice((f"{p} gave {q} {gift}", f"{q} got {gift} from {p}")), entailing, neutral, contradicting
    negated = rng.choice((f"{p} did not give {q} {gift}", f"{q} did not get {gift} from {p}"))
    return negated, contradicting, neutral, entailing


def _country(rng: random.Random) -> Choices:
    p, q = _people(rng, 2)
    here, there = rng.sample(sorted(CAPITALS), 2)
    year = rng.randrange(2, 30)

    def living(city: str) -> list[str]:
        return [
            f"{p} lives in {city} with {q}",
            f"{p} has lived in {city} for {number_word(year)} years",
            f"{p}, a cousin of {q}, lives in the middle of {city}",
            f"the house in which {p} lives is in {city}",
        ]

    neutral = [
        f"{p} was born in {CAPITALS[here]}",
        f"{q}, a cousin of {p}, lives in {CAPITALS[here]}",
        f"{p} has a picture of {CAPITALS[here]} on the wall",
        f"{p} spent {number_word(year)} days in {CAPITALS[there]} with {q}",
        f"the house that {p} sold is in {CAPITALS[here]}",
    ]
    return f"{p} lives in {here}", living(CAPITALS[here]), neutral, living(CAPITALS[there])


def _deed(rng: random.Random) -> Choices:
    p, q = _people(rng, 2)
    base, past = rng.choice(DEEDS)
    when = rng.choice(ADJUNCTS)
    done = [
        f"{p} managed to {base} {when}",
        f"{p} remembered to {base}, {q} says",
        f"with the help of {q}, {p} {past}",
        f"{p} {past} {when}, which surprised {q}",
    ]
    undone = [
        f"{p} failed to {base} {when}",
        f"{p} forgot to {base}, {q} says",
        f"despite the help of {q}, {p} was unable to {base}",
        f"{p} refused to {base}, which surprised {q}",
    ]
    neutral = [
        f"{p} wanted to {base} {when}",
        f"{p} promised to {base}, {q} says",
        f"{q} asked {p} to {base}",
        f"{p} was expected to {base} {when}",
        f"with the help of {p}, {q} {past}",
        f"{q} forgot to {base}, {p} says",
    ]
    if rng.random() < 0.5:
        return f"{p} {past}", done, neutral, undone
    return f"{p} did not {base}", undone, neutral, done


def _weather(rng: random.Random) -> Choices:
    here, there = rng.sample(sorted(CAPITALS.values()), 2)
    states = {
        "raining": ["heavy rain is falling on", "a cold rain is pouring down on"],
        "snowing": ["thick snow is falling on", "large white flakes are falling on"],
        "sunny": ["the sun is shining brightly on", "there is not a cloud in the sky over"],
    }
    state, other = rng.sample(sorted(states), 2)
    tail = rng.choice(("this morning", "at the moment", "today", "in the old town", f"this {rng.choice(DAYS)}"))
    (p,) = _people(rng, 1)
    neutral = [
        f"{rng.choice(states[state])} {there} {tail}",
        f"it was {state} in {here} last week, {p} says",
        f"a strong wind is blowing over {here} {tail}",
        f"{p} asks whether it is {state} in {here} {tail}",
    ]
    return (
        f"it is {state} in {here} {tail}",
        [f"{words} {here} {tail}" for words in states[state]],
        neutral,
        [f"{words} {here} {tail}" for words in states[other]],
    )


def _colour(rng: random.Random) -> Choices:
    p, q = _people(rng, 2)
    garment = rng.choice(GARMENTS)
    colour, other = rng.sample(COLOURS, 2)
    act = rng.choice(PASTIMES)

    def wearing(shade: str) -> list[str]:
        return [
            f"{p}, in {with_article(shade)} {garment}, is {act}",
            f"{p} is {act} and wears {with_article(shade)} {garment}",
            f"the {garment} that {p} is wearing is {shade}",
        ]

    neutral = [
        f"{p} is {act} and wears {with_article(garment)}",
        f"{q}, in {with_article(colour)} {garment}, is {act} beside {p}",
        f"the {garment} that {p} has lost is {colour}",
        f"{p} is {act}, and {q} wears {with_article(colour)} {garment}",
    ]
    return f"{p} is wearing {with_article(colour)} {garment}", wearing(colour), neutral, wearing(other)


def _skill(rng: random.Random) -> Choices:
    p, q = _people(rng, 2)
    (does, do), (also, _) = rng.sample(SKILLS, 2)
    yes = [f"{p} {does}, and so does {q}", f"both {p} and {q} {do}", f"{q} does not {do}, but {p} does"]
    no = [f"{q} {does}, but {p} does not", f"neither {p} nor {q} {does}", f"{p} {also} but does not {do}"]
    neutral = [
        f"{q} {does}, and {p} {also}",
        f"{p} {also}, and so does {q}",
        f"{q} does not {do}",
        f"{q} {does}",
    ]
    if rng.random() < 0.5:
        return f"{p} {does}", [*yes, f"{p} {also} and {does}"], neutral, no
    return f"{p} does not {do}", no, neutral, [*yes, f"{p} {also} and {does}"]


def _choice(rng: random.Random) -> Choices:
    p, q = _people(rng, 2)
    one, two = rng.sample(rng.choice(CHOICES), 2)
    when = rng.choice(ADJUNCTS)

    def chose(taken: str, left: str) -> list[str]:
        return [
            f"{when}, {p} chose {taken} rather than {left}",
            f"{p} chose {taken}, while {q} preferred {left}",
            f"offered {taken} or {left}, {p} took the former",
            f"offered {left} or {taken}, {p} took the latter",
        ]

    neutral = [
        f"{when}, {p} had to choose between {one} and {two}",
        f"{q} chose {one}, but what {p} preferred is not known",
        f"offered {one} or {two}, {q} took the former",
        f"{p} was offered {one} by {q}",
    ]
    return f"{p} chose {one}", chose(one, two), neutral, chose(two, one)


def _relation(rng: random.Random) -> Choices:
    p, q, r = _people(rng, 3)
    one, other = rng.sample(rng.choice(RELATIONS), 2)

    def related(a: str, b: str) -> list[str]:
        return [
            f"{b} is the {other} of {a}",
            f"{r} has met {a}, the {one} of {b}",
            f"{b}, the {other} of {a}, is talking to {r}",
            f"it is well known that {a} is the {one} of {b}",
        ]

    neutral = [
        f"{r} is the {other} of {p}",
        f"{p} is the {one} of {r}",
        f"{q}, the {other} of {r}, is talking to {p}",
    ]
    return f"{p} is the {one} of {q}", related(p, q), neutral, related(q, p)


def _job(rng: random.Random) -> Choices:
    p, q = _people(rng, 2)
    job, other = rng.sample(JOBS, 2)
    when = rng.choice(ADJUNCTS)
    entailing = [
        f"{p}, {with_article(job)}, met {q} {when}",
        f"{q} met {with_article(job)} {when} whose name is {p}",
        f"{p} is a good {job}, and {q} is {with_article(other)}",
        f"{p} is {with_article(job)}, not {with_article(other)}",
    ]
    neutral = [
        f"{q}, {with_article(job)}, met {p} {when}",
        f"{p} met {with_article(job)} {when} whose name is {q}",
        f"{q} is a good {job}, and {p} is a friend",
        f"{p} is looking for {with_article(job)}",
    ]
    contradicting = [
        f"{p}, who is no {job}, met {q} {when}",
        f"{p} is not {with_article(job)} but {with_article(other)}",
        f"{q} is {with_article(job)}, and {p} is not",
        f"{p} is {with_article(other)}, not {with_article(job)}",
    ]
    if rng.random() < 0.5:
        return f"{p} is {with_article(job)}", entailing, neutral, contradicting
    return f"{p} is not {with_article(job)}", contradicting, neutral, entailing


def _time(rng: random.Random) -> Choices:
    event, other = rng.sample(EVENTS, 2)
    p, q = _people(rng, 2)
    parts = {
        "morning": ("eight", "nine", "ten", "eleven"),
        "afternoon": ("two", "three", "four", "five"),
        "evening": ("seven", "eight", "nine", "ten"),
    }
    day, another = rng.sample(DAYS, 2)
    part, elsewhen = rng.sample(sorted(parts), 2)

    def begins(time: str) -> list[str]:
        clock = f"at {rng.choice(parts[time])} in the {time}"
        return [
            f"the {event} of {p} begins on {day} {clock}",
            f"{clock} on {day}, {q} opens the {event} of {p}",
            f"{q} has tickets for the {event} of {p}, which is on {day} {clock}",
        ]

    clock = f"at {rng.choice(parts[part])} in the {part}"
    neutral = [
        f"the {other} of {p} begins on {day} {clock}",
        f"{q} has tickets for the {event} of {p}, which is on {day}",
        f"{clock} on {another}, {q} asked when the {event} of {p} begins",
        f"{clock} on {day}, {p} opens the {event} of {q}",
    ]
    return f"the {event} of {p} takes place in the {part}", begins(part), neutral, begins(elsewhen)


FAMILIES: tuple[Callable[[random.Random], Choices], ...] = (
    *(_place, _quality, _kind_of_thing, _number, _passive, _order, _comparison, _quantity, _gift, _country, _deed),
    *(_weather, _colour, _skill, _choice, _relation, _job, _time),
)
