"""Taxonomy of features: tab-separated text or a QIIME 2 artifact, and the lineage down to a rank."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from aam.data.files import check_ids, decode_text, read_text, require_file, shown, strip_ids
from aam.data.qza import is_artifact, read_artifact
from aam.errors import DataError

__all__ = ["RANKS", "UNASSIGNED", "load_taxonomy", "names_in_taxonomy", "parse_level", "taxa_at"]

RANKS = ("domain", "phylum", "class", "order", "family", "genus", "species")
UNASSIGNED = "unassigned"
_WHAT = "taxonomy"
_ID_HEADERS = ("feature id", "featureid", "feature-id", "feature_id", "#otu id", "#otuid", "otu id")
_TAXON_HEADERS = ("taxon", "taxonomy")
_PREFIX = re.compile(r"(?:([dkpcofgst])|d_([0-9]{1,2}))__", re.IGNORECASE)
_RANK_OF_LETTER = {"d": 0, "k": 0, "p": 1, "c": 2, "o": 3, "f": 4, "g": 5, "s": 6, "t": 7}
_NO_NAME = frozenset({"", "unassigned", "unclassified", "unknown", "na", "nan", "none"})


def load_taxonomy(path: Path) -> dict[str, str]:
    """Read the taxonomy of features.

    Parameters
    ----------
    path
        Tab-separated text, gzipped or not, with the columns ``Feature ID`` and ``Taxon`` among others, as
        ``qiime tools export`` writes it, or a QIIME 2 artifact of type ``FeatureData[Taxonomy]``.

    Returns
    -------
    dict
        Feature ID to lineage, ``"k__Bacteria; p__Firmicutes"``, in file order.

    Raises
    ------
    DataError
        If the file cannot be read, lacks one of the columns, repeats a feature or has rows of another length.
    """
    path = require_file(path, _WHAT)
    if is_artifact(path):
        artifact = read_artifact(path, ("FeatureData[Taxonomy]",), _WHAT)
        text = decode_text(artifact.read("taxonomy.tsv"), path, _WHAT)
    else:
        text = read_text(path, _WHAT)
    lines = [(number, line.split("\t")) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    header = [cell.strip().strip('"').lower() for cell in lines.pop(0)[1]]
    feature, taxon = (_place(header, names, path) for names in (_ID_HEADERS, _TAXON_HEADERS))
    ids, lineages = [], []
    for number, cells in lines:
        if cells[0].startswith("#"):
            continue
        if len(cells) > len(header) or len(cells) <= max(feature, taxon):
            raise DataError(
                f"{path}: line {number} has {len(cells)} cells where the header has {len(header)}; make every row as "
                "long as the header"
            )
        ids.append(cells[feature])
        lineages.append(cells[taxon].strip().strip('"'))
    if not ids:
        raise DataError(f"{path}: has a header but no features; export the taxonomy again")
    ids = strip_ids(ids, path)
    check_ids(ids, "feature ID", path)
    return dict(zip(ids, lineages, strict=True))


def names_in_taxonomy(
    taxonomy: Mapping[str, str], feature_ids: Sequence[str], sequences: Sequence[str], path: Path
) -> tuple[list[str], int]:
    """What a taxonomy calls features, their IDs or their sequences; and how many it does not name.

    Parameters
    ----------
    taxonomy
        See `load_taxonomy`.
    feature_ids, sequences : sequence of str, length A
    path
        Of the taxonomy, for messages.

    Raises
    ------
    DataError
        If it names none.
    """
    names = [
        feature if feature in taxonomy else sequence for feature, sequence in zip(feature_ids, sequences, strict=True)
    ]
    lacking = sum(name not in taxonomy for name in names)
    if lacking == len(names):
        raise DataError(
            f"{path}: names none of the {len(names)} features, {shown(names[0])} for example; give the taxonomy of "
            "this table"
        )
    return names, lacking


def _place(header: Sequence[str], names: Sequence[str], path: Path) -> int:
    for name in names:
        if name in header:
            return header.index(name)
    wanted = "Feature ID" if names is _ID_HEADERS else "Taxon"
    raise DataError(
        f"{path}: has no column {wanted!r} (its first line has {', '.join(map(shown, header[:4]))}); the first line "
        "must be 'Feature ID', a tab and 'Taxon'"
    )


def parse_level(level: str | int) -> int:
    """A rank as its number from 1, domain, to 7, species; ``kingdom`` is 1 too.

    Raises
    ------
    DataError
        If it is none.
    """
    word = str(level).strip().lower()
    if word in RANKS:
        return RANKS.index(word) + 1
    if word == "kingdom":
        return 1
    if word in map(str, range(1, len(RANKS) + 1)):
        return int(word)
    raise DataError(f"taxonomic level {shown(level)} is none of {', '.join(RANKS)} or 1 to {len(RANKS)}")


def taxa_at(taxonomy: Mapping[str, str], feature_ids: Sequence[str], level: str | int) -> list[str]:
    """The lineage of every feature, down to a rank.

    A rank without a name (``g__``, ``unassigned``, or nothing at all) is ``unassigned``, and where none below it is
    named either, the lineage ends there: unknown genera of two families are two taxa, and all unknown genera of one
    family are one, whatever else they lack. A feature without a lineage is ``unassigned``.

    Parameters
    ----------
    taxonomy
        Feature ID to lineage: ranks from domain to species divided by ``;``, with prefixes (``d__`` or ``k__``,
        ``p__``, … ``s__``, as Greengenes and SILVA have them; ``D_0__``, ``D_1__``, …, as older SILVA has) or without.
    feature_ids : sequence of str, length A
    level
        A rank or its number; see `parse_level`.

    Returns
    -------
    list of str, length A

    Raises
    ------
    DataError
        If the level is none.

    Examples
    --------
    >>> taxonomy = {"a": "k__Bacteria; p__Firmicutes; c__", "b": "d__Bacteria;p__Bacteroidota;c__Bacteroidia"}
    >>> taxa_at(taxonomy, ["a", "b", "c"], "class")
    ['Bacteria;Firmicutes;unassigned', 'Bacteria;Bacteroidota;Bacteroidia', 'unassigned']
    """
    depth = parse_level(level)
    taxa: dict[str, str] = {"": UNASSIGNED}
    found = []
    for name in feature_ids:
        lineage = taxonomy.get(name, "")
        if lineage not in taxa:
            taxa[lineage] = _cut(lineage, depth)
        found.append(taxa[lineage])
    return found


def _cut(lineage: str, depth: int) -> str:
    ranks = [""] * depth
    rank = -1
    for part in lineage.split(";"):
        name = part.strip()
        prefix = _PREFIX.match(name)
        if prefix:
            letter, number = prefix.groups()
            rank = int(number) if number else _RANK_OF_LETTER[letter.lower()]
            name = name[prefix.end() :].strip()
        else:
            rank += 1
        if rank < depth and not ranks[rank] and name.lower() not in _NO_NAME:
            ranks[rank] = name
    named = max((place for place, name in enumerate(ranks, 1) if name), default=0)
    known = [name or UNASSIGNED for name in ranks[:named]]
    return ";".join(known if named == depth else [*known, UNASSIGNED])
