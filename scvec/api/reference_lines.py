"""What a store tells people of one reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["REGIME_WORDS", "reference_lines"]

#: As what a query is judged, the nearest to the reference first, in words.
REGIME_WORDS = {
    "same": "like the reference's own",
    "panel": "a panel of fewer genes",
    "few": "few of its genes",
    "species": "another species",
    "species_few": "few genes of another species",
}
#: Votes smaller than this are nothing.
LEAST_SHARE = 0.005


def reference_lines(details: Mapping[str, Any]) -> list[str]:
    """Return lines about a reference from `ReferenceInfo.details`, those of its labels left out.

    Details of other kinds stand at the end as they are.
    """
    told = dict(details)
    lines = [f"  {told.pop('genes'):,} genes, {told.pop('embed_dim')} dimensions"] if "genes" in told else []
    if cells := told.pop("cells", None):
        lines.append("  cells: " + ", ".join(f"{n:,} {species}" for species, n in cells.items()))
    lines += [_source(source) for source in told.pop("sources", ())]
    if index := told.pop("index", None):
        lines.append(f"  index: {_index(index)}")
    if options := told.pop("options", None):
        shown = (f"{name} {value}" for name, value in options.items() if value not in (None, "", [], {}))
        lines.append(f"  options: {', '.join(shown)}")
    held_out, record = told.pop("held out", None), told.pop("record", None)
    if record:
        lines += _record(str(held_out), record)
    return lines + [f"  {key}: {value}" for key, value in told.items()]


def _source(source: Mapping[str, Any]) -> str:
    said = [f"{source['n_cells']:,} {source.get('species', '')} cells".replace("  ", " ")]
    said += [text for text in (source.get("genes"), (source.get("expression") or {}).get("message")) if text]
    return f"  from {source.get('name')}: {'; '.join(said)}"


def _index(index: Mapping[str, Any]) -> str:
    said = f"{index['kind']}, {index['search']}"
    if recall := index.get("recall"):
        found = ", ".join(f"{name.replace('_', ' ')} {share:.3f}" for name, share in recall.items())
        most = " at most" if index.get("reach") is not None else ""
        said += f"; {index['n_lists']:,} lists, {index['nprobe']} opened{most}, factor {index['factor']}"
        said += f"; recall {found} (asked {index['target']:g})"
    if "layers" in index:
        said += f"; {index['added']:,} cells added, {index['gone']:,} gone, {index['layers']} layers"
        said += " (scvec compact puts them together)"
    return said


def _record(held_out: str, record: Mapping[str, Any]) -> list[str]:
    """Return a table: how right it was on cells held out, and which voices count how much."""
    order = {regime: words for regime, words in REGIME_WORDS.items() if regime in record}
    order |= {regime: regime for regime in record if regime not in order}
    width = max(map(len, ("query", *order.values())))
    lines = [f"  on held-out cells ({held_out}), by what a query is judged as:"]
    lines.append(f"    {'query':<{width}}  accuracy  macro-F1    ECE  votes")
    for regime, words in order.items():
        found = record[regime]
        numbers = (found.get("accuracy"), found.get("macro_f1"), found.get("ece"))
        accuracy, f1, ece = ("-" if number is None else f"{number:.3f}" for number in numbers)
        shares = {voice: told["share"] for voice, told in (found.get("voices") or {}).items()}
        ranked = sorted(shares.items(), key=lambda vote: -vote[1])
        votes = ", ".join(f"{voice} {share:.2f}" for voice, share in ranked if share >= LEAST_SHARE)
        lines.append(f"    {words:<{width}}  {accuracy:>8}  {f1:>8}  {ece:>5}  {votes}".rstrip())
    return lines
