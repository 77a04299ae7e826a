"""Entrezgene XML as efetch of the fake server gives it."""

from __future__ import annotations

from collections.abc import Iterable
from xml.sax.saxutils import escape

from fake_genes import ORGANISMS, FakeGene


def entrezgene_set(genes: Iterable[FakeGene]) -> str:
    """Entrezgene XML of the recorded shape, with the parts that are read."""
    head = (
        '<?xml version="1.0" ?>\n<!DOCTYPE Entrezgene-Set PUBLIC "-//NLM//DTD NCBI-Entrezgene, 21st January '
        '2005//EN" "https://www.ncbi.nlm.nih.gov/data_specs/dtd/NCBI_Entrezgene.dtd">\n<Entrezgene-Set>\n'
    )
    return head + "".join(map(entrezgene, genes)) + "</Entrezgene-Set>\n"


def entrezgene(gene: FakeGene) -> str:
    organism = ORGANISMS[gene.species]
    status = 'value="live">0' if gene.alive else 'value="secondary">1'
    kinds = {"protein-coding": 6, "pseudo": 7, "ncRNA": 10}
    return f"""<Entrezgene>
  <Entrezgene_track-info><Gene-track>
    <Gene-track_geneid>{gene.entrez_id}</Gene-track_geneid>
    <Gene-track_status {status}</Gene-track_status>
  </Gene-track></Entrezgene_track-info>
  <Entrezgene_type value="{gene.gene_type}">{kinds.get(gene.gene_type, 255)}</Entrezgene_type>
  <Entrezgene_source><BioSource><BioSource_org><Org-ref>
    <Org-ref_taxname>{organism["scientificname"]}</Org-ref_taxname>
    <Org-ref_common>{organism["commonname"]}</Org-ref_common>
    <Org-ref_db>{_tag("taxon", organism["taxid"])}</Org-ref_db>
    <Org-ref_orgname><OrgName>
      <OrgName_lineage>Eukaryota; Metazoa; Chordata; of {gene.entrez_id}</OrgName_lineage>
    </OrgName></Org-ref_orgname>
  </Org-ref></BioSource_org></BioSource></Entrezgene_source>
  <Entrezgene_gene><Gene-ref>
    <Gene-ref_locus>{escape(gene.symbol)}</Gene-ref_locus>
    <Gene-ref_desc>{escape(gene.name)}</Gene-ref_desc>
    <Gene-ref_db>{_tag(gene.authority.partition(":")[0] or "HGNC", gene.authority)}
      {"".join(_tag("Ensembl", e) for e in gene.ensembl_ids)}{_tag("MIM", 100_000 + gene.entrez_id)}
    </Gene-ref_db>
    <Gene-ref_syn>{"".join(_synonym(a) for a in gene.aliases)}</Gene-ref_syn>
  </Gene-ref></Entrezgene_gene>
  <Entrezgene_summary>{escape(gene.summary)}</Entrezgene_summary>
  <Entrezgene_comments>
    <Gene-commentary>
      <Gene-commentary_type value="comment">254</Gene-commentary_type>
      <Gene-commentary_heading>RefSeq Status</Gene-commentary_heading>
      <Gene-commentary_label>REVIEWED</Gene-commentary_label>
    </Gene-commentary>
    <Gene-commentary>
      <Gene-commentary_type value="gene-group">23</Gene-commentary_type>
      <Gene-commentary_heading>Orthologs from Annotation Pipeline</Gene-commentary_heading>
      <Gene-commentary_comment>
        {_ortholog("Primary", gene.entrez_id, gene.symbol, "human", 9606)}
        {_ortholog("Additional", 500_000 + gene.entrez_id, f"Orth{gene.entrez_id}", "mouse", 10090)}
      </Gene-commentary_comment>
    </Gene-commentary>
    <Gene-commentary>
      <Gene-commentary_type value="comment">254</Gene-commentary_type>
      <Gene-commentary_heading>Representative Expression</Gene-commentary_heading>
      <Gene-commentary_comment><Gene-commentary>
        <Gene-commentary_type value="comment">254</Gene-commentary_type>
        <Gene-commentary_label>Text Summary</Gene-commentary_label>
        <Gene-commentary_text>Biased expression in brain (RPKM {gene.entrez_id}) </Gene-commentary_text>
      </Gene-commentary></Gene-commentary_comment>
    </Gene-commentary>
  </Entrezgene_comments>
</Entrezgene>
"""


def _ortholog(label: str, entrez_id: int, symbol: str, organism: str, taxon: int) -> str:
    return f"""<Gene-commentary>
          <Gene-commentary_type value="gene-group">23</Gene-commentary_type>
          <Gene-commentary_label>{label}</Gene-commentary_label>
          <Gene-commentary_source>
            <Other-source><Other-source_src>{_tag("GeneID", entrez_id)}</Other-source_src>
              <Other-source_pre-text>{escape(symbol)}</Other-source_pre-text>
              <Other-source_anchor>{organism}</Other-source_anchor></Other-source>
            <Other-source><Other-source_src>{_tag("taxon", taxon)}</Other-source_src></Other-source>
          </Gene-commentary_source>
        </Gene-commentary>"""


def _synonym(name: str) -> str:
    return f"<Gene-ref_syn_E>{escape(name)}</Gene-ref_syn_E>"


def _tag(db: str, value: object) -> str:
    kind = "id" if isinstance(value, int) else "str"
    return (
        f"<Dbtag><Dbtag_db>{escape(db)}</Dbtag_db><Dbtag_tag><Object-id>"
        f"<Object-id_{kind}>{escape(str(value))}</Object-id_{kind}></Object-id></Dbtag_tag></Dbtag>"
    )
