#!/usr/bin/env bash
# Installs the wheel of dist/ into a clean environment, without the checkout, and tries it:
#   tools/try_wheel.sh python3.12 [FOLDER]
set -euo pipefail
project="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${1:-python3}"
folder="${2:-$(mktemp -d)}"
wheel="$(ls "$project"/dist/scvec-*.whl)"
"$python" -m venv "$folder/env"
pip=("$folder/env/bin/python" -m pip --disable-pip-version-check install --quiet --no-compile -c "$project/constraints.txt")
"${pip[@]}" torch==2.13.0
"${pip[@]}" "${wheel}[offline,plot]"
cd "$folder"
unset PYTHONPATH
"$folder/env/bin/python" - "$project" <<'PYTHON'
import sys
import scvec
assert not scvec.__file__.startswith(sys.argv[1]), scvec.__file__
for name in scvec.__all__:
    getattr(scvec, name)
print("scvec", scvec.__version__, "on Python", sys.version.split()[0])
PYTHON
"$folder/env/bin/scvec" --store "$folder/store" doctor
"$folder/env/bin/scvec" demo --out "$folder/demo-out"
test -s "$folder/demo-out/report.html"
"$folder/env/bin/scvec" --store "$folder/store" pull pancreas-human
"$folder/env/bin/scvec" --store "$folder/store" query "$folder/demo-out/human_query.h5ad" -o "$folder/labels.csv"
"$folder/env/bin/scvec" --store "$folder/store" search genes "insulin secretion" -k 3
"$folder/env/bin/scvec" --store "$folder/store" verify
