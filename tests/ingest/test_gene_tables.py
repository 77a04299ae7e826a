"""Downloaded gene tables: recognised by content, read in batches, other files refused."""
# ruff: noqa: E501 (rows of tables as they are downloaded)

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from scvec.base.errors import InputError
from scvec.base.types import Gene
from scvec.ingest.genes import is_date, read_gene_file

NCBI = (
    "#tax_id\tGeneID\tSymbol\tLocusTag\tSynonyms\tdbXrefs\tchromosome\tmap_location\tdescription\ttype_of_gene\t"
    "Symbol_from_nomenclature_authority\tFull_name_from_nomenclature_authority\tNomenclature_status\t"
    "Other_designations\tModification_date\tFeature_type"
)
NCBI_ROWS = [
    "9606\t3630\tINS\t-\tIDDM|IDDM1|ILPR\tMIM:176730|HGNC:HGNC:6081|Ensembl:ENSG00000254647|AllianceGenome:HGNC:6081"
    '\t11\t11p15.5\tinsulin\tprotein-coding\tINS\tinsulin\tO\tinsulin|prepro"insulin\t20240101\t-',
    "9606\t7157\tP53\t-\tLFS1\tHGNC:11998|Ensembl:ENSG00000141510|Ensembl:ENSG00000999999\t17\t-\ttumor protein"
    "\tpseudo\tTP53\ttumor protein p53\tO\t-\t20240101\t-",
    "9606\t99\tLOC99\t-\t-\t-\t1\t-\ta locus\tunknown\t-\t-\t-\t-\t20240101\t-",
    "9606\t98\tENH1\t-\t-\t-\t1\t-\tan enhancer\tbiological-region\t-\t-\t-\t-\t20240101\tregulatory:enhancer",
    "10090\t16334\tIns2\t-\tMody|Mody4\tMGI:MGI:96573|Ensembl:ENSMUSG00000000215|AllianceGenome:MGI:96573\t7\t7 F5"
    "\tinsulin II\tprotein-coding\tIns2\tinsulin II\tO\t-\t20240101\t-",
    "1234567\t30970\tCG3038\t-\t-\tFLYBASE:FBgn0040373\tX\t-\tprotein\tprotein-coding\t-\t-\t-\t-\t20240101\t-",
]
HGNC = (
    "hgnc_id\tsymbol\tname\tlocus_group\tlocus_type\tstatus\tlocation\tlocation_sortable\talias_symbol\talias_name"
    "\tprev_symbol\tprev_name\tgene_group\tgene_group_id\tdate_approved_reserved\tdate_symbol_changed"
    "\tdate_name_changed\tdate_modified\tentrez_id\tensembl_gene_id\tvega_id"
)
HGNC_ROWS = [
    'HGNC:18149\tA4GALT\t"alpha 1,4-galactosyltransferase (P ""blood group"")"\tprotein-coding gene'
    '\tgene with protein product\tApproved\t22q13.2\t22q13.2\t"A14GALT|Gb3S|P(k)"\t"Gb3 synthase|CD77 synthase"'
    '\t"PK1|P1PK"\t\t\t\t2002-01-01\t\t\t2024-01-01\t53947\tENSG00000128274\tOTTHUMG1',
    "HGNC:37133\tA1BG-AS1\tA1BG antisense RNA 1\tnon-coding RNA\tRNA, long non-coding\tApproved\t19q13.43\t19q13.43"
    "\t\t\t\t\t\t\t2009\t\t\t2013\t503538\tENSG00000268895\t",
    "HGNC:1\tGONE\tsymbol withdrawn\twithdrawn\twithdrawn\tEntry Withdrawn\t\t\t\t\t\t\t\t\t\t\t\t\t\t\t",
]
MGI_ENTREZ = [
    "MGI:96573\tIns2\tO\tinsulin II\t88.0\t7\tGene\tMGI:1\t16334\tIns-2|Mody4\tprotein coding gene\t1\t2\t-\tx",
    "MGI:87854\tPzp-ps1\tO\tpseudo\t1\t6\tPseudogene\t\t\t\tpseudogene\t1\t2\t-\tx",
    "MGI:1918911\t0610005C13Rik\tO\tRIKEN\t1\t7\tGene\t\t71661\t\tlncRNA gene\t1\t2\t-\tlncRNA",
    "MGI:96000\tIns-2\tW\twithdrawn, = Ins2\t\t7\tGene\t\t\t\t\t\t\t\t",
    "MGI:891\tQtl1\tO\ta trait\t\t7\tQTL\t\t\t\tQTL\t\t\t\t",
]
MGI_LIST = (
    "MGI Accession ID\tChr\tcM Position\tgenome coordinate start\tgenome coordinate end\tstrand\tMarker Symbol"
    "\tStatus\tMarker Name\tMarker Type\tFeature Type\tMarker Synonyms (pipe-separated)"
)
MGI_LIST_ROWS = [
    "MGI:96573\t7\t87.99\t142232393\t142233463\t-\tIns2\tO\tinsulin II\tGene\tprotein coding gene\tIns-2|Mody4",
    "MGI:1\t7\t1\t\t\t\tOld\tW\twithdrawn\tGene\t\t",
    "MGI:2\t7\t1\t\t\t\tTg(x)1\tO\ta transgene\tTransgene\ttransgene\t",
]
MGI_ENSEMBL = [
    "MGI:96573\tIns2\tinsulin II\t87.99\t7\tENSMUSG00000000215\tENSMUST1 ENSMUST2\tENSMUSP1\tprotein coding gene"
    "\t1\t2\t-\tprotein coding gene",
]
MGI_COORD = (
    "1. MGI accession id\t2. marker type\t3. marker symbol\t4. marker name\t5. genome build\t6. Entrez gene id"
    "\t7. NCBI gene chromosome\t8. NCBI gene start\t9. NCBI gene end\t10. NCBI gene strand\t11. Ensembl gene id"
)


def lines(*rows: str) -> bytes:
    return ("\n".join(rows) + "\n").encode()


def read(path: Path, content: bytes, **options: Any) -> tuple[list[Gene], list[str]]:
    path.write_bytes(content)
    notes: list[str] = []
    records = [r for batch in read_gene_file(path, notes=notes, **options) for r in batch]
    assert all(texts == [] for _, texts in records)
    return [gene for gene, _ in records], notes


@pytest.mark.parametrize("name", ["Homo_sapiens.gene_info", "table.csv", "no ending", "x.tsv"])
@pytest.mark.parametrize("packed", [False, True])
def test_ncbi_whatever_the_file_is_called(tmp_path: Path, name: str, packed: bool) -> None:
    content = lines(NCBI, *NCBI_ROWS)
    genes, notes = read(tmp_path / name, gzip.compress(content) if packed else content)
    assert genes == [
        Gene(
            gene_id="HGNC:6081",
            species="human",
            symbol="INS",
            entrez_id=3630,
            name="insulin",
            gene_type="protein-coding",
            ensembl_ids=("ENSG00000254647",),
            aliases=("IDDM", "IDDM1", "ILPR"),
        ),
        Gene(
            gene_id="HGNC:11998",
            species="human",
            symbol="TP53",
            entrez_id=7157,
            name="tumor protein p53",
            gene_type="pseudogene",
            ensembl_ids=("ENSG00000141510", "ENSG00000999999"),
            aliases=("P53", "LFS1"),
        ),
        Gene(gene_id="entrez:99", species="human", symbol="LOC99", entrez_id=99, name="a locus"),
        Gene(
            gene_id="MGI:96573",
            species="mouse",
            symbol="Ins2",
            entrez_id=16334,
            name="insulin II",
            gene_type="protein-coding",
            ensembl_ids=("ENSMUSG00000000215",),
            aliases=("Mody", "Mody4"),
        ),
    ]
    assert notes == [
        f"{name} is a table of NCBI gene_info",
        f"{name}: skipped 1 row of features that are not genes",
        f"{name}: skipped 1 row of unknown species",
    ]


def test_the_header_that_ncbi_wrote_until_2016(tmp_path: Path) -> None:
    old = (
        "#Format: "
        + NCBI.lstrip("#").replace("\t", " ")
        + " (tab is used as a separator, pound sign - start)"
    )
    genes, _ = read(tmp_path / "gene_info", lines(old, *NCBI_ROWS[:1]))
    assert [g.gene_id for g in genes] == ["HGNC:6081"]


def hgnc_json() -> bytes:
    header = HGNC.split("\t")
    docs = []
    for row in HGNC_ROWS:
        doc: dict[str, Any] = {}
        for key, cell in zip(header, row.split("\t"), strict=True):
            value: Any = cell[1:-1].replace('""', '"') if cell.startswith('"') else cell
            if value:
                doc[key] = value.split("|") if key in ("alias_symbol", "prev_symbol", "alias_name") else value
        docs.append({"gene_group_id": [1, 2], **doc})
    return json.dumps({"responseHeader": {"status": 0}, "response": {"numFound": 3, "docs": docs}}).encode()


@pytest.mark.parametrize(
    ("name", "content"),
    [("hgnc_complete_set.txt", lines(HGNC, *HGNC_ROWS)), ("hgnc_complete_set.json", hgnc_json())],
)
def test_hgnc_as_text_and_as_json(tmp_path: Path, name: str, content: bytes) -> None:
    genes, notes = read(tmp_path / name, content)
    assert genes == [
        Gene(
            gene_id="HGNC:18149",
            species="human",
            symbol="A4GALT",
            entrez_id=53947,
            name='alpha 1,4-galactosyltransferase (P "blood group")',
            gene_type="protein-coding",
            ensembl_ids=("ENSG00000128274",),
            aliases=("A14GALT", "Gb3S", "P(k)"),
            previous=("PK1", "P1PK"),
        ),
        Gene(
            gene_id="HGNC:37133",
            species="human",
            symbol="A1BG-AS1",
            entrez_id=503538,
            name="A1BG antisense RNA 1",
            gene_type="lncRNA",
            ensembl_ids=("ENSG00000268895",),
        ),
    ]
    assert f"{name}: skipped 1 row that HGNC has withdrawn" in notes


def test_hgnc_custom_download(tmp_path: Path) -> None:
    header = "HGNC ID\tApproved symbol\tApproved name\tStatus\tLocus type\tPrevious symbols\tAlias symbols\tNCBI Gene ID"
    row = "HGNC:5\tA1BG\talpha-1-B glycoprotein\tApproved\tRNA, Y\tX1, X2\tY1\t1"
    [gene], _ = read(tmp_path / "custom.txt", lines(header, row))
    assert (gene.previous, gene.aliases, gene.entrez_id) == (("X1", "X2"), ("Y1",), 1)
    assert gene.gene_type == "ncRNA"


def test_json_of_many_genes_is_read_piece_by_piece(tmp_path: Path) -> None:
    docs = [{"hgnc_id": f"HGNC:{i}", "symbol": f"G{i}", "pad": "x" * 200} for i in range(1, 5001)]
    content = json.dumps({"response": {"docs": docs}}, indent=1).encode()
    (tmp_path / "hgnc.json").write_bytes(content)
    tracemalloc.start()
    sizes = [len(batch) for batch in read_gene_file(tmp_path / "hgnc.json", batch_size=500)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sizes == [500] * 10
    assert peak < len(content)


INS2 = Gene(
    gene_id="MGI:96573",
    species="mouse",
    symbol="Ins2",
    entrez_id=16334,
    name="insulin II",
    gene_type="protein-coding",
    aliases=("Ins-2", "Mody4"),
)


def test_mgi_with_entrez_ids(tmp_path: Path) -> None:
    genes, notes = read(tmp_path / "MGI_EntrezGene.rpt", lines(*MGI_ENTREZ))
    assert genes[0] == INS2
    assert [(g.gene_id, g.gene_type) for g in genes[1:]] == [
        ("MGI:87854", "pseudogene"),
        ("MGI:1918911", "lncRNA"),
    ]
    assert notes[1:] == [
        "MGI_EntrezGene.rpt: skipped 1 row of withdrawn markers",
        "MGI_EntrezGene.rpt: skipped 1 row of features that are not genes",
    ]


def test_mgi_list_ensembl_and_coordinates(tmp_path: Path) -> None:
    from dataclasses import replace

    genes, notes = read(tmp_path / "MRK_List2.rpt", lines(MGI_LIST, *MGI_LIST_ROWS))
    assert genes == [replace(INS2, entrez_id=None)]
    assert len(notes) == 3
    ensembl = {"ensembl_ids": ("ENSMUSG00000000215",), "aliases": ()}
    genes, _ = read(tmp_path / "MRK_ENSEMBL.rpt", lines(*MGI_ENSEMBL))
    assert genes == [replace(INS2, entrez_id=None, **ensembl)]
    row = "MGI:96573\tGene\tIns2\tinsulin II\tGRCm39\t16334\t7\t1\t2\t-\tENSMUSG00000000215"
    genes, _ = read(tmp_path / "MGI_Gene_Model_Coord.rpt", lines(MGI_COORD, row))
    assert genes == [replace(INS2, gene_type="", **ensembl)]


def test_batches_do_not_change_what_is_read(tmp_path: Path) -> None:
    content = lines(NCBI, *NCBI_ROWS)
    whole, _ = read(tmp_path / "a", content)
    for size in (1, 2, 3):
        assert read(tmp_path / "a", content, batch_size=size)[0] == whole
    list(read_gene_file(tmp_path / "a", batch_size=2))  # without notes


def test_symbols_that_a_spreadsheet_turned_into_dates(tmp_path: Path) -> None:
    rows = [NCBI_ROWS[0], *(NCBI_ROWS[2].replace("LOC99", date) for date in ("1-Mar", "2-Sep", "Dec-01"))]
    genes, notes = read(tmp_path / "gene_info", lines(NCBI, *rows))
    assert [g.symbol for g in genes] == ["INS"]
    assert notes[-1] == (
        "gene_info: skipped 3 rows whose symbol a spreadsheet changed to a date, such as 1-Mar, 2-Sep, Dec-01"
    )
    path = tmp_path / "own.csv"
    path.write_text("entrez_id,symbol,species\n1,2023-03-01,human\n2,GCG,human\n")
    own: list[str] = []
    [[(gene, _)]] = list(read_gene_file(path, notes=own))
    assert gene.symbol == "GCG" and "2023-03-01" in own[0]


def test_dates_are_no_symbols_and_symbols_no_dates() -> None:
    assert all(map(is_date, ["1-Mar", "15-Sep", "Sep-02", "2020-03-01", "2020-03-01 00:00:00"]))
    assert not any(
        map(is_date, ["MARCH1", "MARCHF1", "SEPTIN2", "DEC1", "DEC-1", "NKX6-1", "H2-K1", "Mar-a", ""])
    )


@pytest.mark.parametrize(
    ("content", "what", "fix"),
    [
        (lines("#tax_id\tGeneID\tGO_ID\tEvidence", "9606\t1\tGO:1\tIDA"), "this NCBI table", "gene_info"),
        (lines("MGI:1\tMP:0001\tx"), "this MGI table", "MGI_EntrezGene"),
        (lines("MGI Marker Accession ID\tallele\tx", "MGI:1\ta\tb"), "this MGI table", "MRK_List2"),
        (lines("hgnc_id\talias\tx", "HGNC:1\ta\tb"), "this HGNC table", "hgnc_complete_set"),
        (lines(NCBI, *NCBI_ROWS[-1:]), "no gene of a known species", "table of genes"),
        (lines(NCBI), "no gene of a known species", "table of genes"),
        (lines(NCBI, NCBI_ROWS[0][:60]), "columns instead of 16", "download it again"),
        (lines(NCBI, NCBI_ROWS[0].replace("3630", "x")), "'x' is not an Entrez id", "whole number"),
        (lines(NCBI, NCBI_ROWS[0].replace("INS", "-")), "no symbol", "download"),
        (lines(HGNC, HGNC_ROWS[0].replace("HGNC:18149", "?")), "no HGNC id", "download"),
        (gzip.compress(lines(NCBI, *NCBI_ROWS) * 50, mtime=0)[:-40], "truncated or damaged", "again"),
        (lines(NCBI).rstrip() + b"\n9606\t" + b"x" * 4_100_000, "longer than 4 MB", "one gene"),
        (b'{"response": {"docs": [{"hgnc_id": "HGNC:5", "symbol": "A"}, {"hgnc_', "truncated", "again"),
        (b'{"response": {"docs": [["hgnc_id"]]}, "hgnc_id": 1}', "not genes", "again"),
        (lines("a\tb\tc", "1\t2\t3"), "unknown format of a gene file", "gene_info"),
        (b'{"1": {"Official Symbol": "INS"}}', "unknown format of a gene file", "gene_info"),
        (bytes(5000), "unknown format of a gene file", "gene_info"),
    ],
)
def test_a_wrong_or_damaged_table_is_explained(tmp_path: Path, content: bytes, what: str, fix: str) -> None:
    with pytest.raises(InputError, match=what) as caught:
        read(tmp_path / "table.txt", content)
    assert fix in caught.value.fix
    assert "table.txt" in caught.value.where
    assert len(caught.value.lines()) == 3


def test_json_that_is_not_hgncs_leads_to_the_other_command(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path / "human.json", b'{"1": {"Official Symbol": "INS"}}')
    assert "scvec import-legacy" in caught.value.fix


def test_a_row_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path / "t", lines(NCBI, NCBI_ROWS[0], NCBI_ROWS[1].replace("7157", "-5")))
    assert "row 2" in caught.value.where


def test_a_human_gene_with_the_id_of_a_mouse_authority_keeps_its_species(tmp_path: Path) -> None:
    row = NCBI_ROWS[0].replace("HGNC:HGNC:6081", "MGI:MGI:1").replace("AllianceGenome:HGNC:6081", "x")
    [gene], _ = read(tmp_path / "t", lines(NCBI, row))
    assert (gene.gene_id, gene.species) == ("entrez:3630", "human")


def test_tables_fill_a_knowledge_base_and_meet_in_one_gene(tmp_path: Path) -> None:
    from scvec.stores.knowledge.knowledge import KnowledgeBase

    files = {
        "info": lines(NCBI, *NCBI_ROWS),
        "entrez.rpt": lines(*MGI_ENTREZ),
        "ens.rpt": lines(*MGI_ENSEMBL),
    }
    with KnowledgeBase.open(tmp_path / "kb.duckdb") as kb:
        for name, content in files.items():
            (tmp_path / name).write_bytes(content)
            kb.upsert_records(read_gene_file(tmp_path / name))
        genes = kb.genes()
        assert len(genes) == 6
        assert genes.loc[genes["symbol"] == "Ins2", "entrez_id"].tolist() == [16334]
        names = kb.aliases()
        assert {"Mody", "Ins-2", "ENSMUSG00000000215"} <= set(
            names.loc[names["gene_id"] == "MGI:96573", "name"]
        )


def test_genes_of_any_species_that_is_known_have_the_ids_of_its_authority(tmp_path: Path) -> None:
    fly = NCBI_ROWS[-1].replace("1234567", "7227")
    path = tmp_path / "All_Data.gene_info"
    path.write_bytes(lines(NCBI, fly))
    [[(gene, _)]] = read_gene_file(path)
    assert (gene.gene_id, gene.species, gene.symbol) == ("FB:FBgn0040373", "fruit fly", "CG3038")
    assert gene.ensembl_ids == ("FBgn0040373",)
