"""Registry of species: names and patterns of gene ids (``data/species.toml``)."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from typing import Any

from scvec.base.errors import InputError

__all__ = [
    "OTHER",
    "SPECIES",
    "SpeciesInfo",
    "genome_species",
    "id_species",
    "known_species",
    "species_key",
    "species_named",
]

#: Species of gene ids of an unknown kind, which are used unchanged.
OTHER = "other"
#: Words of tables for an unknown species.
_NO_SPECIES = frozenset("unknown none na n/a nan null mixed multiple several any all ensembl ncbi".split())
_KEY = re.compile(r"[a-z][a-z0-9 ._'-]{0,59}")
_ENSEMBL = re.compile(r"ENS([A-Z]{3,4})?[GTP]\d{11}")


@dataclass(frozen=True)
class SpeciesInfo:
    """One species: its names, and patterns of the ids of its genes.

    Attributes
    ----------
    key
        Its name in tables and answers.
    taxon
        NCBI taxon id.
    prefix
        Prefix of the authority's ids, such as ``MGI:``; empty if genes have Ensembl ids.
    genes, products, genomes
        Patterns of gene ids, of transcripts and proteins, and of genome prefixes.
    style
        Case of symbols: ``upper``, ``title``, ``lower`` or ``mixed``.
    default
        Whether its genes are loaded into every store.
    common
        Common name at NCBI, if it differs from the key.
    groups
        Names of groups of species, such as ``macaque``, that are ambiguous.
    words, kin
        Patterns of words for the species in texts, and of words for it or related species.
    """

    key: str
    taxon: int
    scientific: str
    names: tuple[str, ...]
    authority: str
    prefix: str = ""
    genes: tuple[str, ...] = ()
    products: tuple[str, ...] = ()
    genomes: tuple[str, ...] = ()
    style: str = "mixed"
    default: bool = False
    common: str = ""
    groups: tuple[str, ...] = ()
    words: str = ""
    kin: str = ""

    @cached_property
    def gene_id(self) -> re.Pattern[str]:
        """Pattern of the gene ids, with or without a version."""
        return _any(self.genes)

    @cached_property
    def product_id(self) -> re.Pattern[str]:
        """Pattern of the ids of transcripts and proteins."""
        return _any(self.products)


def _any(patterns: Iterable[str]) -> re.Pattern[str]:
    return re.compile(rf"(?:{'|'.join(patterns) or '(?!)'})(?:\.\d+)?")


@cache
def known_species() -> dict[str, SpeciesInfo]:
    """Return the species of the registry by key, in its order."""
    text = resources.files("scvec").joinpath("data", "species.toml").read_text(encoding="utf-8")
    found = {}
    for key, entry in tomllib.loads(text).items():
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()}
        found[key] = SpeciesInfo(key, **fields)
    return found


#: The species whose genes are loaded into every store.
SPECIES: tuple[str, ...] = tuple(key for key, one in known_species().items() if one.default)


@cache
def _by_name() -> dict[str, str]:
    found: dict[str, str] = {}
    for one in known_species().values():
        for name in (one.key, one.scientific, str(one.taxon), *one.names):
            found.setdefault(_plain(name), one.key)
    # M. fascicularis; and the genus alone (Rattus) if the registry has one species of it.
    parts = [(one.key, *one.scientific.casefold().split()[:2]) for one in known_species().values()]
    short = [(f"{genus[0]} {epithet}", key) for key, genus, epithet in parts]
    short += [(genus, key) for key, genus, _ in parts if len(genus) > 3]
    times = Counter(name for name, _ in short)
    for name, key in short:
        if times[name] == 1:
            found.setdefault(name, key)
    return found


_TAXON = re.compile(r"(?:ncbi ?taxon|tax(?:on(?:omy)?)?(?: ?id)?|txid):? ?(?=\d)|\.0$")


def _plain(name: str) -> str:
    name = _TAXON.sub("", name.strip().casefold().replace("_", " "))
    return " ".join(name.replace(". ", " ").split())


def species_named(text: str) -> str | None:
    """Return the key of a species by any of its names, or its taxon id; None for other names."""
    return _by_name().get(_plain(text))


def _in_words(text: str) -> set[str]:
    """Return the species that a longer text names, such as a genome, a strain, or two species."""
    genome = genome_species(text.strip())
    if genome:
        return {genome}
    found: set[str] = set()
    for part in re.split(r"[,;/+&()\[\]|]|\band\b", text):
        words = _plain(part).split()
        names = (" ".join(words), " ".join(words).removesuffix("s"), " ".join(words[:2]))
        found |= {key for name in names if (key := _by_name().get(name)) is not None}
    return found or {key for part in text.split("_") if (key := genome_species(part)) is not None}


def species_key(text: str, where: str = "--species", known: Iterable[str] = ()) -> str:
    """Return the key of a species: of the registry, ``other``, or a name of its own.

    Parameters
    ----------
    known
        Keys of further species of a store.

    Raises
    ------
    InputError
        If it cannot be a name, or looks like a misspelled name of a known species.
    """
    found = species_named(text)
    if found is not None:
        return found
    plain = _plain(text)
    if plain == OTHER or plain in set(known):
        return plain
    named = _in_words(text)
    if len(named) == 1:
        return named.pop()
    if len(named) > 1:
        fix = "give one species; a file of several species has to be split"
        raise InputError(f"{text!r} names {' and '.join(sorted(named))}", where, fix, code="unknown-choice")
    among = [one.key for one in known_species().values() if plain in one.groups]
    if among or plain in _NO_SPECIES:
        fix = f"give one of them: {', '.join(among)}" if among else "leave it out, or give a name or other"
        raise InputError(f"{text!r} is not one species", where, fix, code="unknown-choice")
    near = difflib.get_close_matches(plain, _by_name(), n=1, cutoff=0.75)
    if near or not _KEY.fullmatch(plain) or plain == "auto":
        listed = ", ".join(list(known_species())[:6])
        fix = f"did you mean {near[0]}?" if near else f"give a name or taxon id ({listed}, ...) or other"
        raise InputError(f"unknown species {text!r}", where, fix, code="unknown-choice")
    return plain


@cache
def _ensembl_prefixes() -> dict[str, str]:
    found: dict[str, str] = {}
    for one in known_species().values():
        for pattern in one.genes:
            match = re.match(r"ENS([A-Z]{3,4})?G\\d", pattern)
            if match:
                found[match[1] or ""] = one.key
    return found


@cache
def _other_ids() -> re.Pattern[str]:
    """One pattern of the gene ids that are not Ensembl's, a named group for each species."""
    keys = {key: [p for p in one.genes if not p.startswith("ENS")] for key, one in known_species().items()}
    groups = (
        f"(?P<{key.replace(' ', '_')}>{'|'.join(patterns)})" for key, patterns in keys.items() if patterns
    )
    return re.compile(rf"(?:{'|'.join(groups)})(?:\.\d+)?")


def id_species(name: str) -> str | None:
    """Return the species whose gene ids look like a name; empty for ids of an unknown species, None for none.

    Examples
    --------
    >>> id_species("ENSDARG00000009473.2"), id_species("FBgn0000003"), id_species("INS")
    ('zebrafish', 'fruit fly', None)
    """
    if name.startswith("ENS"):
        found = _ENSEMBL.match(name)
        if found and name[found.end() - 12] == "G":
            return _ensembl_prefixes().get(found[1] or "", "")
        return None
    match = _other_ids().fullmatch(name)
    return None if match is None else str(match.lastgroup).replace("_", " ")


@cache
def _genomes() -> list[tuple[str, re.Pattern[str]]]:
    return [
        (one.key, re.compile("|".join(one.genomes), re.IGNORECASE))
        for one in known_species().values()
        if one.genomes
    ]


def genome_species(prefix: str) -> str | None:
    """Return the species of a genome prefix such as ``GRCh38`` or ``mm10``."""
    return next((key for key, pattern in _genomes() if pattern.fullmatch(prefix)), None)
