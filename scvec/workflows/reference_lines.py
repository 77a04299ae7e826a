"""What a store tells people of one reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["reference_lines"]


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
    if "segments" in index:
        said += f"; {index['appended']:,} cells appended, {index['deleted']:,} deleted"
        said += f", {index['segments']} segments (scvec compact merges them)"
    return said


def _record(held_out: str, record: Mapping[str, Any]) -> list[str]:
    """Return one line: how right the reference was on cells held out."""
    names = {"accuracy": "accuracy", "macro_f1": "macro-F1", "ece": "ECE"}
    told = [f"{said} {record[key]:.3f}" for key, said in names.items() if record.get(key) is not None]
    if not told:
        return ["  no cell could be held out: confidence is not calibrated, novelty is not judged"]
    alone = ", ".join(f"{name} {value:.3f}" for name, value in (record.get("members") or {}).items())
    return [f"  on held-out cells ({held_out}): {', '.join(told)}" + (f"; alone: {alone}" if alone else "")]
