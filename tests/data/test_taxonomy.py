from __future__ import annotations

import gzip

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aam.data.biom_loader import load_table
from aam.data.taxonomy import RANKS, load_taxonomy, parse_level, taxa_at
from aam.errors import DataError
from tests.data.artifacts import write_artifact
from tests.real_data import real_data

TSV = b"Feature ID\tTaxon\tConfidence\r\nf\tk__Bacteria; p__Firmicutes\t0.9\r\n g\td__Archaea\t1\r\n"
READ = {"f": "k__Bacteria; p__Firmicutes", "g": "d__Archaea"}


def test_text_and_artifact(tmp_path):
    path = tmp_path / "taxonomy"
    for content in (TSV, gzip.compress(TSV), b"\xef\xbb\xbf" + TSV):
        path.write_bytes(content)
        assert load_taxonomy(path) == READ
    assert load_taxonomy(write_artifact(path, "FeatureData[Taxonomy]", {"taxonomy.tsv": TSV})) == READ


def test_details(tmp_path):
    path = tmp_path / "taxonomy.tsv"
    path.write_text('Confidence\tTaxon\t#OTU ID\n#q2:types\tcategorical\t\n\n1\t\tf\n1\t"d__A;p__B"\tg\n')
    assert load_taxonomy(path) == {"f": "", "g": "d__A;p__B"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"f\tk__Bacteria\ng\tk__Bacteria\n", r"no column 'Feature ID' \(its first line has 'f', 'k__bacteria'\)"),
        (b"Feature ID\tLineage\nf\tk__\n", "no column 'Taxon'"),
        (b"Feature ID\tTaxon\n", "no features"),
        (b"Feature ID\tTaxon\nf\n", "line 2 has 1 cells where the header has 2"),
        (b"Feature ID\tTaxon\nf\ta\tb\n", "line 2 has 3 cells"),
        (b"Feature ID\tTaxon\nf\ta\nf\tb\n", "duplicate feature ID.*'f'"),
        (b"Feature ID\tTaxon\nf\ta\nf \tb\n", "'f' and 'f ' differ by white space"),
        (b"Feature ID\tTaxon\n\ta\n", "empty feature ID"),
        (b"", "is empty"),
        (b"PK\x03\x04", "zip archive"),
    ],
)
def test_errors(tmp_path, content, words):
    path = tmp_path / "taxonomy.tsv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        load_taxonomy(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_artifact_of_another_type(tmp_path):
    path = write_artifact(tmp_path / "a.qza", "FeatureData[Sequence]", {"dna-sequences.fasta": b">f\nA\n"})
    with pytest.raises(DataError, match="--sequences"):
        load_taxonomy(path)


GREENGENES = "k__Bacteria; p__Firmicutes; c__Clostridia; o__Clostridiales; f__Lachnospiraceae; g__Blautia; s__"
SILVA = "d__Bacteria;p__Firmicutes;c__Clostridia;o__Lachnospirales;f__Lachnospiraceae;g__Blautia;s__Blautia_sp"


@pytest.mark.parametrize(
    ("lineage", "level", "taxon"),
    [
        (GREENGENES, "domain", "Bacteria"),
        (GREENGENES, "kingdom", "Bacteria"),
        (GREENGENES, 6, "Bacteria;Firmicutes;Clostridia;Clostridiales;Lachnospiraceae;Blautia"),
        (GREENGENES, "species", "Bacteria;Firmicutes;Clostridia;Clostridiales;Lachnospiraceae;Blautia;unassigned"),
        (SILVA, "7", "Bacteria;Firmicutes;Clostridia;Lachnospirales;Lachnospiraceae;Blautia;Blautia_sp"),
        (SILVA, "Order", "Bacteria;Firmicutes;Clostridia;Lachnospirales"),
        ("k__Bacteria; p__; c__; o__", "order", "Bacteria;unassigned"),
        ("k__Bacteria", "genus", "Bacteria;unassigned"),
        ("k__A; p__B; c__; o__D", "class", "A;B;unassigned"),
        ("k__A; p__B; c__; o__D", "order", "A;B;unassigned;D"),
        ("k__A;o__D", "order", "A;unassigned;unassigned;D"),
        ("d__Eukaryota;k__Fungi;p__B", "phylum", "Eukaryota;B"),
        ("D_0__Bacteria;D_1__Firmicutes", "phylum", "Bacteria;Firmicutes"),
        ("D_0__Bacteria;D_14__X;D_99999999999__Y", "phylum", "Bacteria;unassigned"),
        ("Bacteria; Firmicutes;Clostridia", "class", "Bacteria;Firmicutes;Clostridia"),
        ("K__Bacteria;P__Firmicutes", "phylum", "Bacteria;Firmicutes"),
        ("Unassigned", "class", "unassigned"),
        ("", "class", "unassigned"),
        ("k__; p__", "domain", "unassigned"),
        (";;;", "genus", "unassigned"),
    ],
)
def test_taxa(lineage, level, taxon):
    assert taxa_at({"f": lineage}, ["f", "absent"], level) == [taxon, "unassigned"]


@pytest.mark.parametrize("level", [0, 8, "strain", "", "1.0"])
def test_levels_that_are_none(level):
    with pytest.raises(DataError, match=f"{level!s}.* is none of domain"):
        parse_level(level)


@settings(max_examples=60)
@given(st.lists(st.sampled_from(["", "A", "B"]), max_size=7), st.booleans(), st.integers(1, 7))
def test_plain_reading(names, spaced, level):
    prefixes = ["k__", "p__", "c__", "o__", "f__", "g__", "s__"]
    lineage = ("; " if spaced else ";").join(map("".join, zip(prefixes, names, strict=False)))
    ranks = (names + [""] * 7)[:level]
    while ranks and not ranks[-1]:
        ranks.pop()
    expected = [name or "unassigned" for name in ranks] + ["unassigned"] * (len(ranks) < level)
    assert taxa_at({"f": lineage}, ["f"], level) == [";".join(expected)]
    assert taxa_at({"f": lineage}, ["f"], RANKS[level - 1]) == [";".join(expected)]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60) | st.text('fg;_k#"\t\n', max_size=60).map(str.encode))
def test_any_bytes_give_a_taxonomy_or_a_data_error(tmp_path, content):
    path = tmp_path / "taxonomy.tsv"
    for head in (b"", b"Feature ID\tTaxon\n"):
        path.write_bytes(head + content)
        try:
            taxonomy = load_taxonomy(path)
        except DataError as error:
            taxonomy = {str(error): ""}
        assert taxonomy
        assert not any("\n" in name for name in taxonomy)
        taxa_at(taxonomy, list(taxonomy), 7)


def test_real_taxonomy():
    taxonomy = load_taxonomy(real_data("udca_qza/taxonomy.qza"))
    features = load_table(real_data("udca_qza/table.qza")).feature_ids
    assert set(features) <= set(taxonomy)
    for level in range(1, 8):
        coarse = [taxon.split(";") for taxon in taxa_at(taxonomy, features, level)]
        assert max(map(len, coarse)) == level
    assert set(taxa_at(taxonomy, features, 1)) == {"Bacteria", "Archaea"}
