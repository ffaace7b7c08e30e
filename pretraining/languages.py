"""The 27 languages of the embedded encoder and their codes in each corpus."""

from __future__ import annotations

from typing import NamedTuple


class Codes(NamedTuple):
    """One language's name in each corpus; `None` where the corpus lacks it."""

    tatoeba: str | None
    ntrex: str
    sib200: str


LANGUAGES: dict[str, Codes] = {
    "en": Codes("eng", "eng", "eng_Latn"),
    "ar": Codes("ara", "arb", "arb_Arab"),
    "bg": Codes("bul", "bul", "bul_Cyrl"),
    "bn": Codes("ben", "ben", "ben_Beng"),
    "de": Codes("deu", "deu", "deu_Latn"),
    "el": Codes("ell", "ell", "ell_Grek"),
    "es": Codes("spa", "spa", "spa_Latn"),
    "fr": Codes("fra", "fra", "fra_Latn"),
    "gu": Codes(None, "guj", "guj_Gujr"),
    "hi": Codes("hin", "hin", "hin_Deva"),
    "id": Codes("ind", "ind", "ind_Latn"),
    "ja": Codes("jpn", "jpn", "jpn_Jpan"),
    "kn": Codes(None, "kan", "kan_Knda"),
    "ml": Codes("mal", "mal", "mal_Mlym"),
    "mr": Codes("mar", "mar", "mar_Deva"),
    "ne": Codes(None, "nep", "npi_Deva"),
    "pa": Codes(None, "pan", "pan_Guru"),
    "ru": Codes("rus", "rus", "rus_Cyrl"),
    "si": Codes(None, "sin", "sin_Sinh"),
    "sw": Codes("swh", "swa", "swh_Latn"),
    "ta": Codes("tam", "tam", "tam_Taml"),
    "te": Codes("tel", "tel", "tel_Telu"),
    "th": Codes("tha", "tha", "tha_Thai"),
    "tr": Codes("tur", "tur", "tur_Latn"),
    "ur": Codes("urd", "urd", "urd_Arab"),
    "vi": Codes("vie", "vie", "vie_Latn"),
    "zh": Codes("cmn", "zho-CN", "zho_Hans"),
}

NON_ENGLISH = tuple(code for code in LANGUAGES if code != "en")
