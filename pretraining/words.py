"""Words that the generated instruction rows are filled with: names, things, places, actions.

All lists are our own. Names are of many languages, so that a name says little about the rest of a row.
"""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _words(
    "Maria Ahmed Yuki Tomas Nadia Kofi Elena Ravi Ingrid Samuel Mei Pablo Fatima Jonas Amara Dmitri Leila Oscar Priya "
    "Hugo Zanele Marta Kenji Anna Ibrahim Clara Viktor Sunita Diego Hana Peter Lucia Omar Greta Tariq Sofia Nimal "
    "Helen Bruno Aisha Erik Paulo Rosa Chen Daniel Mina Felix Irene Juma Laura Milan Olga Rahul Sarah Tano Ursula "
    "Walter Xenia Yusuf Zofia Adam Berta Carlos Dilani Emil Flora George Hilda Ivan Julia Karim Lena Martin Noor Otto "
    "Petra Robert Stella Thomas Vera"
)

SITES = (
    *("in the kitchen", "in the garden", "at the station", "in the library", "at the market", "in the museum"),
    *("at the airport", "in the hospital", "on the beach", "in the cellar", "at the swimming pool", "in the office"),
    *("in the park", "at the bakery", "in the theatre", "on the roof", "in the stable", "at the harbour"),
    *("in the post office", "at the dentist's", "in the forest", "in the lift", "at the bus stop", "in the courtyard"),
)
"""Where one person can be; nobody is at two of them."""

PASTIMES = (
    *("reading a letter", "talking on the telephone", "waiting for a friend", "drinking coffee", "eating an apple"),
    *("writing a postcard", "looking at a map", "humming a song", "tying a shoe", "feeding a cat", "counting coins"),
    *("taking photographs", "drawing a bird", "laughing loudly", "peeling an orange", "telling a joke"),
    *("searching for a key", "playing cards", "mending a bag", "arguing about money"),
)
"""What can be done at any of the sites."""

QUALITIES = {
    "door": (("open", "closed"), ("wide", "narrow")),
    "soup": (("hot", "cold"), ("thick", "thin")),
    "street": (("quiet", "noisy"), ("narrow", "wide"), ("clean", "dirty")),
    "box": (("heavy", "light"), ("full", "empty")),
    "road": (("wet", "dry"), ("straight", "winding"), ("safe", "dangerous")),
    "knife": (("sharp", "blunt"), ("clean", "dirty")),
    "shop": (("open", "closed"), ("busy", "deserted")),
    "bread": (("fresh", "stale"), ("soft", "hard")),
    "story": (("long", "short"), ("true", "false"), ("sad", "happy")),
    "river": (("deep", "shallow"), ("fast", "slow"), ("clean", "polluted")),
    "bed": (("soft", "hard"), ("empty", "occupied")),
    "test": (("easy", "difficult"), ("short", "long")),
    "room": (("dark", "bright"), ("warm", "cold"), ("tidy", "untidy")),
    "shirt": (("clean", "dirty"), ("loose", "tight"), ("wet", "dry")),
    "ticket": (("cheap", "expensive"), ("valid", "invalid")),
    "train": (("fast", "slow"), ("full", "empty"), ("early", "late")),
    "answer": (("right", "wrong"), ("clear", "confusing")),
    "jar": (("full", "empty"), ("open", "closed")),
    "house": (("old", "new"), ("large", "small"), ("quiet", "noisy")),
    "film": (("boring", "exciting"), ("long", "short")),
    "path": (("steep", "level"), ("narrow", "wide")),
    "cave": (("dark", "bright"), ("deep", "shallow")),
    "guide": (("polite", "rude"), ("honest", "dishonest"), ("awake", "asleep")),
    "horse": (("strong", "weak"), ("calm", "nervous"), ("young", "old")),
    "engine": (("loud", "silent"), ("old", "new")),
    "rope": (("long", "short"), ("thick", "thin"), ("strong", "weak")),
}
"""Things, and pairs of opposites that they cannot both be."""

KINDS_OF_THING = {
    "fruit": ("apple", "pear", "mango", "lemon", "peach", "banana", "melon"),
    "animal": ("horse", "goat", "rabbit", "parrot", "camel", "turtle", "donkey"),
    "vehicle": ("bicycle", "lorry", "tractor", "motorcycle", "van", "bus"),
    "musical instrument": ("violin", "flute", "drum", "trumpet", "harp", "guitar", "cello"),
    "flower": ("rose", "tulip", "lily", "daisy", "sunflower", "orchid"),
    "tool": ("hammer", "saw", "drill", "screwdriver", "spade", "rake"),
    "vegetable": ("carrot", "cabbage", "onion", "turnip", "cucumber", "leek"),
    "piece of furniture": ("chair", "table", "sofa", "wardrobe", "desk", "bookcase"),
    "weapon": ("sword", "dagger", "rifle", "spear", "bow"),
    "toy": ("doll", "kite", "puppet", "teddy bear", "model train"),
}

BUYING = (
    ("bought", "buy"),
    ("sold", "sell"),
    ("found", "find"),
    ("drew", "draw"),
    ("chose", "choose"),
    ("lost", "lose"),
)
"""Past and base form of what can be done with a thing of any kind."""

LOOKS = ("large", "small", "beautiful", "cheap", "strange", "fine", "old", "new", "broken")

ADJUNCTS = (
    *("on Monday", "last week", "after breakfast", "before noon", "in the spring", "last night", "in June"),
    *("during the holidays", "on the way home", "this morning", "two days ago", "at the weekend", "in the end"),
)

COLOURS = ("red", "blue", "green", "yellow", "white", "black", "brown", "grey", "purple", "orange", "pink")

GARMENTS = ("coat", "hat", "shirt", "scarf", "jacket", "dress", "sweater", "cap", "tie", "uniform")

CAPITALS = {
    **{"France": "Paris", "Japan": "Tokyo", "Kenya": "Nairobi", "Peru": "Lima", "Egypt": "Cairo", "Norway": "Oslo"},
    **{"Italy": "Rome", "Spain": "Madrid", "Germany": "Berlin", "Russia": "Moscow", "China": "Beijing"},
    **{"India": "New Delhi", "Portugal": "Lisbon", "Greece": "Athens", "Ireland": "Dublin", "Cuba": "Havana"},
    **{"Poland": "Warsaw", "Austria": "Vienna", "Hungary": "Budapest", "Thailand": "Bangkok", "Nepal": "Kathmandu"},
    **{"Ghana": "Accra", "Chile": "Santiago", "Sweden": "Stockholm", "Finland": "Helsinki", "Turkey": "Ankara"},
    **{"Iran": "Tehran", "Iraq": "Baghdad", "Vietnam": "Hanoi", "Belgium": "Brussels", "Senegal": "Dakar"},
}

TRANSITIVES = (
    *(("chased", "chased", "chase"), ("saw", "seen", "see"), ("called", "called", "call"), ("paid", "paid", "pay")),
    *(("helped", "helped", "help"), ("invited", "invited", "invite"), ("taught", "taught", "teach")),
    *(("beat", "beaten", "beat"), ("thanked", "thanked", "thank"), ("followed", "followed", "follow")),
    *(("warned", "warned", "warn"), ("visited", "visited", "visit"), ("hired", "hired", "hire")),
    *(("painted", "painted", "paint"), ("rescued", "rescued", "rescue"), ("praised", "praised", "praise")),
    *(("woke", "woken", "wake"), ("hid", "hidden", "hide"), ("forgave", "forgiven", "forgive")),
)
"""Past, participle and base form of what one person does to another."""

DEEDS = (
    *(
        ("sell the car", "sold the car"),
        ("repair the roof", "repaired the roof"),
        ("post the letter", "posted the letter"),
    ),
    *(("lock the gate", "locked the gate"), ("finish the book", "finished the book"), ("win the race", "won the race")),
    *(("catch the train", "caught the train"), ("pay the rent", "paid the rent"), ("cook dinner", "cooked dinner")),
    *(("water the plants", "watered the plants"), ("clean the windows", "cleaned the windows")),
    *(("cross the river", "crossed the river"), ("find the ring", "found the ring"), ("feed the hens", "fed the hens")),
    *(("translate the poem", "translated the poem"), ("reach the summit", "reached the summit")),
    *(
        ("sign the contract", "signed the contract"),
        ("build the wall", "built the wall"),
        ("bake a cake", "baked a cake"),
    ),
    *(
        ("solve the puzzle", "solved the puzzle"),
        ("open the safe", "opened the safe"),
        ("learn to swim", "learned to swim"),
    ),
    *(
        ("return the books", "returned the books"),
        ("plant a tree", "planted a tree"),
        ("pass the exam", "passed the exam"),
    ),
)
"""Base and past form of what somebody does or does not get done."""

CROWDS = (
    "students",
    "visitors",
    "guests",
    "farmers",
    "players",
    "nurses",
    "soldiers",
    "children",
    "workers",
    "singers",
)

CROWD_DEEDS = (
    *(("came to the concert", "come to the concert"), ("signed the letter", "sign the letter")),
    *(
        ("slept in the hall", "sleep in the hall"),
        ("bought a ticket", "buy a ticket"),
        ("joined the walk", "join the walk"),
    ),
    *(("passed the exam", "pass the exam"), ("missed the bus", "miss the bus"), ("ate the soup", "eat the soup")),
    *(("voted for the plan", "vote for the plan"), ("answered the question", "answer the question")),
    *(
        ("wore a hat", "wear a hat"),
        ("stayed until midnight", "stay until midnight"),
        ("caught a cold", "catch a cold"),
    ),
)

COMPARATIVES = (
    *(("taller", "shorter"), ("older", "younger"), ("faster", "slower"), ("richer", "poorer"), ("stronger", "weaker")),
    *(("heavier", "lighter"), ("more careful", "less careful"), ("more famous", "less famous")),
)

RELATIONS = (
    *(("parent", "child"), ("grandparent", "grandchild"), ("employer", "employee"), ("landlord", "tenant")),
    *(("teacher", "pupil"), ("doctor", "patient"), ("guardian", "ward")),
)
"""Two sides of a relation; who is on one side of it to somebody is not on the other."""

JOBS = (
    *("baker", "teacher", "dentist", "plumber", "farmer", "painter", "pilot", "lawyer", "waiter", "tailor", "singer"),
    *("carpenter", "librarian", "butcher", "journalist", "gardener", "nurse", "driver", "sailor", "barber", "cook"),
)

GIFTS = (
    "book",
    "key",
    "ring",
    "letter",
    "ticket",
    "camera",
    "lamp",
    "basket",
    "map",
    "watch",
    "blanket",
    "ladder",
    "pen",
)

SKILLS = (
    *(("plays the violin", "play the violin"), ("speaks Arabic", "speak Arabic"), ("eats meat", "eat meat")),
    *(("drives a taxi", "drive a taxi"), ("collects stamps", "collect stamps"), ("likes opera", "like opera")),
    *(("sings in a choir", "sing in a choir"), ("smokes", "smoke"), ("swims every day", "swim every day")),
    *(("owns a boat", "own a boat"), ("keeps bees", "keep bees"), ("paints portraits", "paint portraits")),
    *(("knows the way", "know the way"), ("believes the story", "believe the story"), ("drinks tea", "drink tea")),
)

CHOICES = (
    *(("tea", "coffee"), ("the train", "the bus"), ("the blue bag", "the green bag"), ("rice", "bread")),
    *(("the mountains", "the sea"), ("chess", "cards"), ("the window seat", "the aisle seat"), ("soup", "salad")),
    *(
        ("the early flight", "the late flight"),
        ("biology", "history"),
        ("the guitar", "the piano"),
        ("fish", "chicken"),
    ),
)

EVENTS = ("match", "concert", "meeting", "lesson", "wedding", "auction", "lecture", "ceremony", "rehearsal", "tour")

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July", "August", "September", "October"),
    *("November", "December"),
)

_SMALL = _words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_TENS = _words("twenty thirty forty fifty sixty seventy eighty ninety")


def number_word(number: int) -> str:
    """The English word of a number from 0 to 99."""
    if number < 20:
        return _SMALL[number]
    tens, ones = divmod(number, 10)
    return _TENS[tens - 2] + (f"-{_SMALL[ones]}" if ones else "")


def with_article(noun: str) -> str:
    """`a pear`, `an apple`."""
    return f"{'an' if noun[0] in 'aeiou' and not noun.startswith('uni') else 'a'} {noun}"
