"""Names by markers: oracles are small sets of markers whose answer is plain, and real lists."""

from __future__ import annotations

import csv
import gzip
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scvec.base.errors import InputError
from scvec.celltypes.markers import read_marker_lists, read_markers
from scvec.celltypes.naming import FEATURES, Candidate, MarkerIndex, NameFit, Naming, Tissues, name_columns
from scvec.celltypes.terms import TermMatcher

LABELS = {"CL:1": "cell", "CL:2": "lymphocyte", "CL:3": "B cell", "CL:4": "T cell", "CL:5": "neuron"}
LINEAGE = {
    "CL:2": frozenset({"CL:1", "CL:0", "CL:x"}),
    "CL:3": frozenset({"CL:1", "CL:0", "CL:x", "CL:2"}),
    "CL:4": frozenset({"CL:1", "CL:0", "CL:x", "CL:2"}),
    "CL:5": frozenset({"CL:1", "CL:0", "CL:x"}),
}
ROWS = [
    *[("CL:3", "blood", g, "positive", 1.0, "t") for g in ("MS4A1", "CD79A", "CD19", "PAX5")],
    *[("CL:4", "blood", g, "positive", 1.0, "t") for g in ("CD3D", "CD3E", "TRAC", "CD2")],
    *[("CL:5", "brain", g, "positive", 1.0, "t") for g in ("SYT1", "SNAP25", "RBFOX3", "GAD1")],
    ("CL:4", "blood", "MS4A1", "negative", 1.0, "t"),
]


@pytest.fixture(scope="module")
def index() -> MarkerIndex:
    return MarkerIndex(ROWS, LABELS, LINEAGE)


def test_the_type_of_its_markers_comes_first_with_its_evidence(index):
    found = index.name("a", ["CD79A", "X1", "MS4A1", "X2"])
    best = found.candidates[0]
    assert (best.cl_id, best.label) == ("CL:3", "B cell")
    assert [s["gene"] for s in best.supports] == ["CD79A", "MS4A1"]
    assert found.broad is not None and found.broad.cl_id in ("CL:3", "CL:2")


def test_measured_markers_without_expression_are_evidence_against(index):
    sure = index.name("a", ["CD79A", "MS4A1"])
    doubt = index.name("a", ["CD79A", "MS4A1"], silent=frozenset({"CD19", "PAX5"}))
    assert set(doubt.candidates[0].against) == {"CD19", "PAX5"}
    assert sure.candidates[0].against == ()


def test_a_group_of_two_types_gets_their_common_ancestor(index):
    found = index.name("a", ["CD79A", "CD3D", "CD19", "CD3E", "PAX5", "TRAC"])
    assert found.broad is not None and found.broad.cl_id == "CL:2"


def test_a_list_without_markers_is_unknown(index):
    found = index.name("a", ["A", "B"])
    assert found.status == "unknown" and found.candidates == () and found.broad is None


B, T = Candidate("CL:3", "B cell", 0.7), Candidate("CL:4", "T cell", 0.2)
#: Status -> a group, and its name, id, confidence and broader term.
STATES = {
    "named": (Naming("0", (B, T), Candidate("CL:2", "lymphocyte", 0.9), "named"), "B cell", "CL:3", 0.7),
    "broad": (
        Naming("1", (T, B), Candidate("CL:2", "lymphocyte", 0.85), "broad"),
        "lymphocyte",
        "CL:2",
        0.85,
    ),
    "unknown": (Naming("2", (B, T), Candidate("CL:2", "lymphocyte", 0.9), "unknown"), "unknown", "", None),
}


@pytest.mark.parametrize("state", STATES)
def test_text_json_and_columns_have_the_same_name_and_numbers(state):
    group, name, cl_id, confidence = STATES[state]
    broad = "" if state == "unknown" else "lymphocyte"
    told = group.to_dict()
    assert (told["name"], told["cl_id"], told["confidence"]) == (name, cl_id, confidence)
    assert (told["broad"] or {"label": ""})["label"] == broad
    columns = name_columns([group], np.array([group.group, None], dtype=object), "n")
    assert [columns[k][0] for k in ("n", "n_cl_id", "n_broad")] == [name, cl_id, broad]
    assert [columns[k][1] for k in ("n", "n_cl_id", "n_broad")] == ["", "", ""]
    assert columns["n_confidence"][0] == pytest.approx(
        np.nan if confidence is None else confidence, nan_ok=True
    )
    number = "" if confidence is None else f" {confidence:.2f} ({cl_id}"
    assert group.lines()[0].startswith(f"{group.group}: {name}{number}")
    assert ("lymphocyte" in "".join(group.lines())) == (broad != "")
    # Each term has one number.
    numbers = re.findall(r"(B cell|T cell|lymphocyte) (0\.\d\d)", "\n".join(group.lines()))
    assert len(numbers) == len({term for term, _ in numbers})


def test_a_group_cannot_have_a_status_without_its_term():
    for status in ("named", "broad"):
        with pytest.raises(ValueError):
            Naming("0", (), None, status)


def test_the_tissue_counts():
    rows = [("CL:3", "blood", "G", "positive", 1.0, "t"), ("CL:5", "brain", "G", "positive", 1.0, "t")]
    index = MarkerIndex(rows, LABELS, LINEAGE)
    assert index.name("a", ["G"], tissue="brain").candidates[0].cl_id == "CL:5"
    assert index.name("a", ["G"], tissue="blood").candidates[0].cl_id == "CL:3"


PARTS = [
    ("lung", "lung|respiratory system"),
    ("alveolus of lung", "lung|respiratory system"),
    ("blood", "blood|hematopoietic system"),
    ("bone marrow", "bone marrow|hematopoietic system"),
    ("islet of langerhans", "pancreas|endocrine system"),
    ("exocrine pancreas", "pancreas|digestive system"),
    ("cerebral cortex", "brain|nervous system"),
    ("brain", "brain|nervous system"),
    ("small intestine", "small intestine|intestine|digestive system"),
    ("intestine", "intestine|digestive system"),
]


@pytest.mark.parametrize(
    ("asked", "named", "near"),
    [
        ("PBMC", "blood", 1.0),
        ("islets", "exocrine pancreas", 1.0),
        ("brain cortex", "brain", 1.0),
        ("Bone Marrow", "bone marrow", 1.0),
        ("bone_marrow", "bone marrow", 1.0),
        ("mouse lung", "alveolus of lung", 1.0),
        ("intestine", "small intestine", 1.0),
        ("blood", "bone marrow", 0.4),
        ("lung", "brain", 0.0),
        ("", "brain", 0.0),
        ("moon", "moon", 1.0),
        ("moon", "brain", 0.0),
    ],
)
def test_tissues_that_people_type(asked, named, near):
    assert Tissues(PARTS).near(asked, named) == near


def test_a_near_tissue_counts_and_another_does_not():
    rows = [
        *[("CL:3", "bone marrow", g, "positive", 1.0, "t") for g in ("G", "H")],
        *[("CL:5", "brain", g, "positive", 1.0, "t") for g in ("G", "H")],
    ]
    index = MarkerIndex(rows, LABELS, LINEAGE, tissues=Tissues(PARTS))
    assert index.name("a", ["G", "H"], tissue="PBMC").candidates[0].cl_id == "CL:3"
    assert index.name("a", ["G", "H"], tissue="cerebral cortex").candidates[0].cl_id == "CL:5"


def test_features_by_hand():
    index = MarkerIndex(ROWS, LABELS, LINEAGE)
    rows, values = index.features(["CD79A", "X", "CD3D"], silent=frozenset({"PAX5"}))
    found = {index.terms[i]: dict(zip(FEATURES, v, strict=True)) for i, v in zip(rows, values, strict=True)}
    assert set(found) == {"CL:2", "CL:3", "CL:4"}  # the neuron shares no gene
    assert found["CL:3"]["lacking"] == 0.25 and found["CL:4"]["lacking"] == 0
    first, third = 1.0, 3**-0.4  # genes have one rarity here; the unknown one keeps its place
    assert found["CL:3"]["explained"] == pytest.approx(first / (first + third))
    assert found["CL:2"]["explained"] == pytest.approx(1.0)
    assert found["CL:3"]["shared"] == pytest.approx(0.6931, abs=1e-3)
    assert found["CL:2"]["own"] == 0 and found["CL:2"]["below"] > 0 and found["CL:2"]["pooled"] > 0


def test_learned_weights_decide():
    only = NameFit({"tables": 10.0}, (0.0, 1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0, 0.0))
    rows = [*ROWS, ("CL:4", "blood", "MS4A1", "positive", 1.0, "another"), ROWS[0]]
    index = MarkerIndex(rows, LABELS, LINEAGE, fit=only)
    assert index.name("a", ["MS4A1"]).candidates[0].cl_id == "CL:4"  # two tables know it


def test_a_family_counts_as_one_gene(index):
    said = {"CD3D": "CD3", "CD3E": "CD3", "TRAC": "TRAC"}
    rows, values = index.features(["CD3D", "CD3E", "TRAC", "X"], said=said)
    found = {index.terms[i]: dict(zip(FEATURES, v, strict=True)) for i, v in zip(rows, values, strict=True)}
    assert found["CL:4"]["shared"] == pytest.approx(math.log1p(2))  # CD3 and TRAC
    assert index.known(["CD3D", "CD3E", "X"], said) == pytest.approx(1 / (1 + 2**-0.4))
    # As much as one gene of the family would say, with two for the B cell.
    b = index.name("a", ["MS4A1", "CD79A", "CD3D", "CD3E"], symbols={"CD3D": "CD3", "CD3E": "CD3"})
    assert b.candidates[0].cl_id == "CL:3" and b.genes == ("MS4A1", "CD79A", "CD3")


def test_a_list_that_tables_hardly_know_is_less_sure(index):
    sure = index.name("a", ["CD79A", "MS4A1"])
    unsure = index.name("a", ["CD79A", "MS4A1", *(f"X{i}" for i in range(8))])
    assert [c.cl_id for c in unsure.candidates] == [c.cl_id for c in sure.candidates]
    assert unsure.candidates[0].probability < sure.candidates[0].probability
    one = index.name("a", ["X0", "X1", "CD19", *(f"Y{i}" for i in range(5))])
    assert one.status == "unknown" and one.candidates


def test_the_name_is_that_of_which_most_is_hoped():
    only = NameFit({"own": 1.0}, (0.0, 1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0, 0.0))
    index = MarkerIndex(ROWS, LABELS, LINEAGE, fit=only)
    rows = np.array([index.terms.index(t) for t in ("CL:2", "CL:3", "CL:4")])
    order, proba = index.ranked(rows, np.log([0.2, 0.41, 0.39]))
    # The parent is like both and on one lineage with both; the first is not with its sibling.
    assert order.tolist() == [0, 1, 2] and proba.tolist() == pytest.approx([0.2, 0.41, 0.39])
    order, _ = index.ranked(rows, np.log([0.05, 0.9, 0.05]))
    assert order[0] == 1


def test_the_shipped_fit_has_a_weight_for_each_part():
    fit = NameFit.shipped()
    assert set(fit.weights) == set(FEATURES)
    assert all(fit.weights[name] <= 0 for name in ("lacking", "negative"))
    assert all(fit.weights[name] >= 0 for name in set(FEATURES) - {"lacking", "negative"})


@given(st.lists(st.sampled_from([r[2] for r in ROWS] + [f"N{i}" for i in range(9)]), max_size=40))
def test_probabilities_and_order_for_any_list(genes):
    index = MarkerIndex(ROWS, LABELS, LINEAGE)
    found = index.name("a", genes)
    assert all(0 <= c.probability <= 1 + 1e-9 for c in found.candidates)
    assert all(c.cl_id in LABELS for c in found.candidates)
    assert index.name("a", genes) == found
    assert found.status in ("named", "broad", "unknown")


MATCHER = TermMatcher([("CL:0000236", "B cell", True), ("CL:0000084", "T cell", True)])
TABLES = {
    "accordion.tsv": "species\tUberon_tissue\tCL_celltype\tCL_ID\tmarker\tmarker_type\tresource\n"
    "Human\tblood\tB cell\tCL:0000236\tMS4A1\tpositive\tX\nHuman\tblood\tnone\tCL:9999999\tA\tpositive\tX\n",
    "panglao.tsv": "species\tofficial gene symbol\tcell type\torgan\nMm Hs\tMS4A1\tB cells\tBlood\n",
    "cellmarker.csv": "species,tissue_class,cell_name,marker,Symbol\nHuman,Blood,B cell,CD20,MS4A1\n",
    "sctype.csv": 'tissueType,cellName,geneSymbolmore1,geneSymbolmore2\nBlood,B cell,"MS4A1,CD79A",CD3D\n',
    "plain.csv": "gene;cell type\nMS4A1;B cell\n",
    "sets.gmt": "B_CELL\thttp://x\tMS4A1\tCD79A\nODD_SET\tx\tA\n",
}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("packed", [False, True])
def test_published_tables(name, packed, tmp_path: Path):
    path = tmp_path / (f"{name}.gz" if packed else name)
    data = TABLES[name].encode()
    path.write_bytes(gzip.compress(data) if packed else data)
    found = read_markers(path, MATCHER)
    genes = {m.gene for m in found.markers if m.direction == "positive"}
    assert {m.cl_id for m in found.markers} == {"CL:0000236"}
    assert genes & {"MS4A1", "CD20"}
    species = {m.species for m in found.markers}
    assert species == ({"human", "mouse"} if name.startswith("panglao") else {"human"})
    if name == "sctype.csv":
        assert {m.gene for m in found.markers if m.direction == "negative"} == {"CD3D"}
    if name in ("accordion.tsv", "sets.gmt"):
        assert found.unmapped  # listed, never guessed


@pytest.mark.parametrize("data", [b"", b"a,b\n1,2\n", b"\0\0\0", b"gene,cell type\n" + b'"' * 300_000])
def test_what_is_not_a_table_of_markers(data, tmp_path: Path):
    path = tmp_path / "x.csv"
    path.write_bytes(data)
    with pytest.raises(InputError):
        read_markers(path, MATCHER)


def test_columns_may_be_named(tmp_path: Path):
    path = tmp_path / "x.csv"
    path.write_text("who,what\nB cell,MS4A1\n")
    found = read_markers(path, MATCHER, columns={"cell_type": "who", "gene": "what"})
    assert [m.gene for m in found.markers] == ["MS4A1"]
    with pytest.raises(InputError):
        read_markers(path, MATCHER, columns={"gene": "nothing"})


def test_lists(tmp_path: Path):
    path = tmp_path / "lists.csv"
    path.write_text('group,genes,tissue,species\n1,"MS4A1, CD79A",blood,human\n2,Ins1 Ins2,,Mouse\n\n')
    assert read_marker_lists(path) == [
        ("1", ["MS4A1", "CD79A"], "blood", "human", ()),
        ("2", ["Ins1", "Ins2"], "", "mouse", ()),
    ]
    path.write_text("number,words\n1,A\n")
    with pytest.raises(InputError):
        read_marker_lists(path)


def test_signs_after_genes_give_presence_or_absence(tmp_path: Path):
    path = tmp_path / "lists.csv"
    path.write_text(
        'group,genes\n1,"CD19+, Cd14hi; HLA-DR (PDGFR\u03b1)| CD3- CD45RAlow Nkx2-1 CD56bright"\n'
    )
    (found,) = read_marker_lists(path)
    assert found.genes == ["CD19", "Cd14", "HLA-DR", "PDGFRa", "Nkx2-1", "CD56"]
    assert found.absent == ("CD3", "CD45RA")


@pytest.mark.parametrize(
    "data",
    [
        "group;genes;tissue\r\na;MS4A1 CD79A;blood\r\n".encode("utf-8-sig"),
        b"sep=;\r\ngroup;genes;tissue\r\na;MS4A1 CD79A;blood\r\n",
        "group\tgenes\ttissue\r\na\tMS4A1 CD79A\tblood\r\n".encode("utf-16"),
        b"group,tissue,genes\na,blood,MS4A1,CD79A\n",
        b'group,genes,tissue\na,"MS4A1\nCD79A",blood\n',
        b'group,genes,tissue\na,"\x1b[31mMS4A1 CD79A\x07",blood\n',
        b"group,genes,tissue\ra,MS4A1 CD79A,blood\r",
        b"group|genes|tissue\na|MS4A1 CD79A|blood\n",
        b"\n# lists of a paper, by hand\ngroup,genes,tissue\na,MS4A1 CD79A,blood\n",
        b"group,genes,tissue\na,MS4A1,CD79A,blood\n",
        b"cluster,p_val,gene,organ\na,0,MS4A1,blood\na,0,CD79A,blood\n",
        b"group,names,logfoldchanges,tissue\na,MS4A1,2.5,blood\na,CD3D,-1.2,blood\na,CD79A,2,blood\n",
    ],
)
def test_lists_as_programs_save_them(data, tmp_path: Path):
    path = tmp_path / "lists.csv"
    path.write_bytes(data)
    assert read_marker_lists(path) == [("a", ["MS4A1", "CD79A"], "blood", "", ())]


@pytest.mark.parametrize(
    "genes",
    [
        "CD3D:5.2 HLA-DRA:4.1e-3 CD2:-3",
        "CD3D: 5.2, HLA-DRA: 4.1; CD2 = 3",
        "CD3D (5.2)|HLA-DRA (4)|CD2",
        "CD3D+HLA-DRA+CD2+",
        "CD3D, HLA-DRA and CD2",
        "['CD3D', 'HLA-DRA', 'CD2']",
        "CD3D\uff0cHLA\u2011DRA\u3001CD2",
        "\u200bCD3D \u2022 HLA-DRA \u00b7 *CD2*",
    ],
)
def test_lists_with_scores_and_other_signs(genes, tmp_path: Path):
    path = tmp_path / "lists.tsv"
    with open(path, "w", newline="") as file:
        csv.writer(file, delimiter="\t").writerows([("group", "genes"), ("a", genes)])
    assert read_marker_lists(path) == [("a", ["CD3D", "HLA-DRA", "CD2"], "", "", ())]


def test_one_gene_in_a_row_makes_one_list_for_each_group_and_tissue(tmp_path: Path):
    path = tmp_path / "lists.csv"
    path.write_text("group,gene,tissue\n1,A1,lung\n2,B1,lung\n1,A2,lung\n1,A1,skin\n")
    found = read_marker_lists(path)
    assert [(f.group, f.genes, f.tissue) for f in found] == [
        ("1", ["A1", "A2"], "lung"),
        ("2", ["B1"], "lung"),
        ("1", ["A1"], "skin"),
    ]
    path.write_text("group,genes\nT,CD3D CD3E\nT,CD8A CD8B\n")  # two lists of one name stay two
    assert [f.genes for f in read_marker_lists(path)] == [["CD3D", "CD3E"], ["CD8A", "CD8B"]]


@pytest.mark.parametrize(
    ("said", "species"),
    [
        ("Mus musculus", "mouse"), ("10090", "mouse"), ("NCBITaxon:9606", "human"), ("murine", "mouse"),
        ("GRCh38", "human"), ("Human", "human"), ("n/a", ""), ("moon calves", "moon calves"),
    ],
)  # fmt: skip
def test_species_of_lists(said, species, tmp_path: Path):
    path = tmp_path / "lists.csv"
    path.write_text(f"group,genes,organism\n1,A,{said}\n")
    assert read_marker_lists(path)[0].species == species


def test_a_quote_without_end_hides_no_lists(tmp_path: Path):
    path = tmp_path / "lists.csv"
    path.write_text('group,genes\na,"MS4A1 CD79A\nb,CD3D\n')
    with pytest.raises(InputError) as caught:
        read_marker_lists(path)
    assert caught.value.code == "damaged-file"


def test_a_tissue_that_nobody_knows_is_noted():
    rows = [("CL:3", "moon", "G", "positive", 1.0, "t")]
    index = MarkerIndex(rows, LABELS, LINEAGE, tissues=Tissues(PARTS))
    for known in ("", "PBMC", "lung, right", "mouse lung", "moon", "Bone Marrow"):
        assert index.tissue_note(known) == []
    assert "is blood meant?" in index.tissue_note("blod")[0]
    assert "meant" not in index.tissue_note("qqqqq")[0]
