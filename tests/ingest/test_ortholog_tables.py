"""Tables of orthologs as databases publish them; their headers to the letter, rows cut out by hand."""

from __future__ import annotations

import gzip
import io
import zipfile
from pathlib import Path

import pytest

from scvec.base.errors import InputError
from scvec.ingest.orthologs.ortholog_tables import Pair, is_ortholog_table, read_ortholog_table

# ruff: noqa: E501
BIOMART = """\
Gene stable ID\tGene name\tHuman gene stable ID\tHuman gene name\tHuman homology type\t\
%id. target Human gene identical to query gene\tHuman orthology confidence [0 low, 1 high]
ENSSSCG00000040000\tINS\tENSG00000254647\tINS\tortholog_one2one\t85.4\t1
ENSSSCG00000040001\t\t\t\t\t\t
ENSSSCG00000040002\tCELA3B\tENSG00000142789\tCELA3A\tortholog_one2many\t80.0\t0
ENSSSCG00000040002\tCELA3B\tENSG00000219073\tCELA3B\tortholog_one2many\t81.0\t0
"""
NCBI = """\
#tax_id\tGeneID\trelationship\tOther_tax_id\tOther_GeneID
9606\t3630\tOrtholog\t10116\t24506
9606\t3630\tOrtholog\t9913\t280829
9606\t2641\tOrtholog\t10116\t24952
"""
ALLIANCE = """\
# Alliance of Genome Resources
# Orthology Filter: Stringent
Gene1ID\tGene1Symbol\tGene1SpeciesTaxonID\tGene1SpeciesName\tGene2ID\tGene2Symbol\tGene2SpeciesTaxonID\t\
Gene2SpeciesName\tAlgorithms\tAlgorithmsMatch\tOutOfAlgorithms\tIsBestScore\tIsBestRevScore
HGNC:4232\tGDNF\tNCBITaxon:9606\tHomo sapiens\tZFIN:ZDB-GENE-010226-1\tgdnfa\tNCBITaxon:7955\tDanio rerio\t\
OrthoInspector|OMA|PANTHER\t9\t10\tYes\tYes
HGNC:4232\tGDNF\tNCBITaxon:9606\tHomo sapiens\tZFIN:ZDB-GENE-010226-9\tgdnfx\tNCBITaxon:7955\tDanio rerio\t\
PANTHER\t1\t10\tNo\tNo
"""
HCOP = """\
human_entrez_gene\thuman_ensembl_gene\thgnc_id\thuman_name\thuman_symbol\thuman_chr\thuman_assert_ids\t\
rat_entrez_gene\trat_ensembl_gene\trgd_id\trat_name\trat_symbol\trat_chr\trat_assert_ids\tsupport
3630\tENSG00000254647\tHGNC:6081\tinsulin\tINS\t11p15.5\t3630\t24506\tENSRNOG00000020405\tRGD:2916\tinsulin 2\t\
Ins2\t1\t24506\tNCBI,Ensembl,OMA,Inparanoid,PhylomeDB
3630\t-\tHGNC:6081\tinsulin\tINS\t11p15.5\t-\t-\t-\tRGD:2870\tinsulin-like growth factor 2\tIgf2\t1\t-\tTreefam
"""
RGD = """\
# RGD orthologs
RAT_GENE_SYMBOL\tRAT_GENE_RGD_ID\tRAT_GENE_NCBI_GENE_ID\tHUMAN_ORTHOLOG_SYMBOL\tHUMAN_ORTHOLOG_RGD\t\
HUMAN_ORTHOLOG_NCBI_GENE_ID\tHUMAN_ORTHOLOG_SOURCE\tMOUSE_ORTHOLOG_SYMBOL\tMOUSE_ORTHOLOG_RGD\t\
MOUSE_ORTHOLOG_NCBI_GENE_ID\tMOUSE_ORTHOLOG_MGI\tMOUSE_ORTHOLOG_SOURCE\tHUMAN_ORTHOLOG_HGNC_ID
Ins2\t2916\t24506\tINS\t731239\t3630\tHGNC|RGD\tIns2\t10544\t16334\tMGI:96573\tRGD\tHGNC:6081
Gcg\t2668\t24952\tGCG\t733020\t2641\tHGNC\tGcg\t10500\t14526\tMGI:95674\tRGD\tHGNC:4191
"""
ZFIN = """\
ZDB-GENE-980526-110\tins\tpreproinsulin\tINS\tinsulin\t176730\t3630\t6081\tAA\tZDB-PUB-030905-1\t
ZDB-GENE-010219-1\tgcga\tglucagon a\tGCG\tglucagon\t138030\t2641\t4191\tAA\tZDB-PUB-030905-1\t
"""
FLYBASE = """\
## FlyBase
##Dmel_gene_ID\tDmel_gene_symbol\tHuman_gene_HGNC_ID\tHuman_gene_OMIM_ID\tHuman_gene_symbol\tDIOPT_score\t\
OMIM_Phenotype_IDs\tOMIM_Phenotype_IDs[name]
FBgn0000022\tac\tHGNC:738\tMIM:100790\tASCL1\t6\t\t
FBgn0000022\tac\tHGNC:24123\tMIM:609155\tASCL4\t1\t\t
"""
MGI = """\
DB Class Key\tCommon Organism Name\tNCBI Taxon ID\tSymbol\tEntrezGene ID\tMouse MGI ID\tHGNC ID\tOMIM Gene ID\t\
Genetic Location\tGenome Coordinates (mouse: GRCm39 human: GRCh38)\tNucleotide RefSeq IDs\tProtein RefSeq IDs\t\
SWISS_PROT IDs
45916481\tmouse, laboratory\t10090\tGdnf\t14573\tMGI:107430\t\t\tChr15\tChr15:1\tNM_1\tNP_1\tP48540
45916481\thuman\t9606\tGDNF\t2668\t\tHGNC:4232\tOMIM:600837\tChr5\tChr5:1\tNM_2\tNP_2\tP39905
"""
WORMBASE = """\
# WormBase orthologs
=
WBGene00000001\taap-1
Homo sapiens\tENSEMBL:ENSG00000117461\tPIK3R3\tWormBase-Compara
=
WBGene00000006\taat-5
Homo sapiens\tENSEMBL:ENSG00000021488\tSLC7A9\tPanther
"""
# Headerless: genes of two species in the columns of a row.
HMD = "INS\t3630\tIns2\tMGI:96573\tMP:0005376\t\nGCG\t2641\tGcg\tMGI:95674\tMP:0005376\t\n"
ZFIN_MOUSE = """\
ZDB-GENE-980526-110\tins\tpreproinsulin\tIns2\tinsulin II\tMGI:96573\t16334\tAA\tZDB-PUB-030905-1\t
ZDB-GENE-010219-1\tgcga\tglucagon a\tGcg\tglucagon\tMGI:95674\t14526\tAA\tZDB-PUB-030905-1\t
"""
XENBASE = "3630\tXB-GENEPAGE-481823\tins\tinsulin\n2641\tXB-GENEPAGE-485507\tgcg\tglucagon\n"
PANTHER = """\
HUMAN|HGNC=6081|UniProtKB=P01308\tDANRE|ZFIN=ZDB-GENE-980526-110|UniProtKB=O73727\tLDO\tEuteleostomi\tPTHR11454
MOUSE|MGI=MGI=96573|UniProtKB=P01326\tDANRE|ZFIN=ZDB-GENE-980526-110|UniProtKB=O73727\tO\tEuteleostomi\tPTHR11454
"""
ORTHOLIST = """\
WormBase ID,Common Name,Locus ID,Ensembl ID,HGNC Symbol,Ortholist No. of Programs
WBGene00000898,daf-2,Y55D5A.5,ENSG00000171105,INSR,5
WBGene00000001,aap-1,Y110A7A.10,ENSG00000117461,PIK3R3,4
"""
# A gene a row, and a column of groups.
HOMOLOGENE = """\
1173\t7955\t30262\tins\t18858895\tNP_571131.1
1173\t9606\t3630\tINS\t4557671\tNP_000198.1
1174\t7955\t494052\tgcga\t62122839\tNP_001008595.1
1174\t9606\t2641\tGCG\t4503945\tNP_002045.1
"""
ORTHODB = """\
pub_og_id\tog_name\tlevel_taxid\torganism_taxid\torganism_name\tint_prot_id\tpub_gene_id\tdescription
1at7742\tinsulin\t7742\t7955\tDanio rerio\t7955_0:000001\tins\tpreproinsulin
1at7742\tinsulin\t7742\t9606\tHomo sapiens\t9606_0:000001\tINS\tinsulin
2at7742\tglucagon\t7742\t7955\tDanio rerio\t7955_0:000002\tgcga\tglucagon a
2at7742\tglucagon\t7742\t9606\tHomo sapiens\t9606_0:000002\tGCG\tglucagon
"""
NUMBERED = "species1,gene1,species2,gene2\nDanio rerio,ins,Homo sapiens,INS\n7955,gcga,9606,GCG\n"
ASKED = "query_species\tquery_gene\ttarget_species\ttarget_gene\tconfidence\nrat\tIns2\thuman\tINS\t0.9\n"
#: A spreadsheet writes a table of commas that it took for text.
ONE_CELL = "".join(f'"{line}"\n' for line in NUMBERED.splitlines())
SPACES = "ENSRNOG00000020405 ENSG00000254647\nENSRNOG00000005498 ENSG00000115263\n"
INS = ("zebrafish", "ins", "human", "INS", "", None)
TWO = "fish,man\nins,INS\ngcga,GCG\nsst1.1,SST\nactb1,ACTB\n"

#: Name -> (text, species asked, a pair that it holds, number of pairs).
TABLES = {
    "mart_export.txt": (
        BIOMART, "pig", ("pig", "ENSSSCG00000040000", "human", "ENSG00000254647", "one2one", 1.0), 3),
    "gene_orthologs": (NCBI, "rat", ("human", "3630", "rat", "24506", "", None), 2),
    "ORTHOLOGY.tsv": (
        ALLIANCE, "zebrafish", ("human", "HGNC:4232", "zebrafish", "ZFIN:ZDB-GENE-010226-1", "", 9.0), 1),
    "human_rat_hcop_fifteen_column.txt": (HCOP, "rat", ("human", "HGNC:6081", "rat", "RGD:2916", "", 5.0), 2),
    "RGD_ORTHOLOGS.txt": (RGD, "rat", ("rat", "2916", "mouse", "MGI:96573", "", None), 4),
    "human_orthos.txt": (ZFIN, "zebrafish", ("zebrafish", "ZDB-GENE-980526-110", "human", "3630", "", None), 2),
    "dmel_human.tsv": (FLYBASE, "fruit fly", ("fruit fly", "FBgn0000022", "human", "HGNC:738", "", 6.0), 2),
    "HOM_MouseHumanSequence.rpt": (MGI, "mouse", ("mouse", "MGI:107430", "human", "HGNC:4232", "", None), 1),
    "c_elegans.orthologs.txt": (
        WORMBASE, "worm", ("worm", "WBGene00000001", "human", "ENSG00000117461", "", 1.0), 2),
    "HMD_HumanPhenotype.rpt": (HMD, "mouse", ("human", "3630", "mouse", "MGI:96573", "", None), 2),
    "mouse_orthos.txt": (
        ZFIN_MOUSE, "zebrafish", ("zebrafish", "ZDB-GENE-980526-110", "mouse", "MGI:96573", "", None), 2),
    "XenbaseGeneHumanOrthologMapping.txt": (XENBASE, "xenopus", ("human", "3630", "xenopus", "ins", "", None), 2),
    "RefGenomeOrthologs": (
        PANTHER, "zebrafish", ("human", "HGNC:6081", "zebrafish", "ZFIN:ZDB-GENE-980526-110", "", None), 2),
    "ortholist.csv": (ORTHOLIST, "worm", ("worm", "WBGene00000898", "human", "ENSG00000171105", "", None), 2),
    "homologene.data": (HOMOLOGENE, "zebrafish", ("zebrafish", "30262", "human", "3630", "", None), 2),
    "orthodb.tsv": (ORTHODB, "zebrafish", INS, 2),
    "numbered.csv": (NUMBERED, "zebrafish", INS, 2),
    "asked.tsv": (ASKED, "rat", ("rat", "Ins2", "human", "INS", "", 0.9), 1),
    "one_cell.csv": (ONE_CELL, "zebrafish", INS, 2),
    "spaces.txt": (SPACES, "rat", ("rat", "ENSRNOG00000020405", "human", "ENSG00000254647", "", None), 2),
    "two.csv": (TWO, "zebrafish", ("human", "INS", "zebrafish", "ins", "", None), 4),
}  # fmt: skip


def shown(pair: Pair) -> tuple[object, ...]:
    first, second = (
        next(names[k] for k in ("authority", "ensembl", "entrez", "symbol") if k in names)
        for names in (pair.names, pair.other)
    )
    return pair.species, first, pair.other_species, second, pair.kind, pair.score


def zipped(data: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as packed:
        packed.writestr("folder/table.txt", data)
    return out.getvalue()


PACKED = {
    "plain": str.encode,
    "gz": lambda text: gzip.compress(text.encode()),
    "zip": lambda text: zipped(text.encode()),
    "utf-16": lambda text: text.replace("\n", "\r\n").encode("utf-16"),
    "BOM": lambda text: b"\xef\xbb\xbf" + text.encode(),
}


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("name", TABLES)
def test_columns_of_a_published_table_are_known(name: str, packed: str, tmp_path: Path) -> None:
    text, species, expected, n = TABLES[name]
    path = tmp_path / name
    path.write_bytes(PACKED[packed](text))
    assert is_ortholog_table(path)
    known = {"INS": "human", "ins": "", "3630": "human", "Ins2": "mouse", "176730": "", "6081": ""}
    known |= {"ins": "xenopus"} if species == "xenopus" else {}
    table = read_ortholog_table(path, [species], known=lambda names: known.get(names[0], ""))
    assert expected in [shown(pair) for pair in table.pairs]
    assert len(table.pairs) == n
    assert all(gene.species == species for gene in table.genes)


def test_gaps_are_no_pairs_and_genes_without_partner_are_genes(tmp_path: Path) -> None:
    path = tmp_path / "mart_export.txt"
    path.write_text(BIOMART)
    table = read_ortholog_table(path, ["pig"])
    assert {g.gene_id: g.symbol for g in table.genes} == {
        "ENSSSCG00000040000": "INS",
        "ENSSSCG00000040001": "ENSSSCG00000040001",
        "ENSSSCG00000040002": "CELA3B",
    }


def test_columns_may_be_named(tmp_path: Path) -> None:
    path = tmp_path / "odd.csv"
    path.write_text("a,b,c\nx1,INS,ins\nx2,GCG,gcga\n")
    table = read_ortholog_table(path, ["zebrafish"], columns={"zebrafish": "c", "human": "2"})
    assert [shown(p)[:4] for p in table.pairs] == [
        ("zebrafish", "ins", "human", "INS"),
        ("zebrafish", "gcga", "human", "GCG"),
    ]
    with pytest.raises(InputError) as caught:
        read_ortholog_table(path, ["zebrafish"], columns={"zebrafish": "d"})
    assert caught.value.code == "unknown-column"


@pytest.mark.parametrize(
    "text",
    [
        "1at33208\t7955_0:000001\n1at33208\t9606_0:00000a\n",
        "1\t1846\tD.rerio.fa\t1.0\tO73727\t100%\n1\t1846\tH.sapiens.fa\t1.0\tP01308\t100%\n",
        "33208\tENOG501\t2\t2\t7955.ENSDARP00000051163,9606.ENSP00000250971\t7955,9606\n",
    ],
    ids=["OrthoDB", "InParanoid", "eggNOG"],
)
def test_tables_of_proteins_are_refused_with_what_to_get(text: str, tmp_path: Path) -> None:
    path = tmp_path / "table.tsv"
    path.write_text(text)
    assert is_ortholog_table(path)
    with pytest.raises(InputError) as caught:
        read_ortholog_table(path, ["zebrafish"])
    assert caught.value.code == "wrong-format" and "proteins" in caught.value.what


def test_a_zip_of_several_files_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "table.zip"
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("a.txt", TWO)
        packed.writestr("b.txt", TWO)
    with pytest.raises(InputError) as caught:
        read_ortholog_table(path, ["zebrafish"])
    assert caught.value.code == "wrong-format"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InputError) as caught:
        read_ortholog_table(path, ["zebrafish"])
    assert caught.value.code == "damaged-file"


def test_another_species_is_not_taken_for_the_one_asked(tmp_path: Path) -> None:
    path = tmp_path / "mart_export.txt"
    path.write_text(BIOMART)
    with pytest.raises(InputError) as caught:
        read_ortholog_table(path, ["zebrafish"])
    assert caught.value.code == "wrong-format"


@pytest.mark.parametrize(
    "text",
    [
        "symbol,entrez_id,species\nINS,3630,human\n",
        "hgnc_id\tsymbol\tname\nHGNC:1\tA\tb\n",
        "",
        "just words\n",
    ],
)
def test_other_tables_are_left_to_their_readers(text: str, tmp_path: Path) -> None:
    path = tmp_path / "genes.csv"
    path.write_text(text)
    assert not is_ortholog_table(path)
