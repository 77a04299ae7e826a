"""Tests of the REST interface: answers, refusals, and hostile uploads."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anndata
import h5py
import mudata
import pytest
from bad_inputs import builders as make
from bad_inputs.cases import CASES
from web_parts import HOSTILE, Server, Shelf, form

from scvec.model.query_options import QueryOptions
from scvec.web import process as process_module
from scvec.web.jobs import Busy, Jobs, script
from scvec.web.process import Limits, memory_of

#: Hostile files from tests/bad_inputs: links to other files, bombs, contradictions, and other formats.
NASTY = (
    "external-link external-storage virtual-dataset matrix-bomb obs-bomb circle-of-groups deep-groups "
    "truncated damaged-start endless-heap csc-indices-beyond column-length no-x unknown-filter empty-file "
    "text-file gzip-file zip-file"
).split()


def ask(
    server: Server, path: str, *, method: str = "GET", data: bytes | None = None, **headers: str
) -> tuple[int, Any, dict[str, str]]:
    lines = {
        "Authorization": f"Bearer {server.token}",
        **{k.replace("_", "-"): v for k, v in headers.items()},
    }
    request = urllib.request.Request(server.base + path, data=data, method=method, headers=lines)
    try:
        with urllib.request.urlopen(request, timeout=500) as answer:
            body, status, found = answer.read(), answer.status, dict(answer.headers)
    except urllib.error.HTTPError as error:
        body, status, found = error.read(), error.code, dict(error.headers)
    kind = found.get("content-type", "")
    return status, json.loads(body) if kind.startswith("application/json") else body, found


def upload(server: Server, content: bytes, name: str = "new.h5ad", **fields: str) -> tuple[int, Any]:
    body, kind = form(content, name, **fields)
    status, answer, _ = ask(server, "/api/jobs", method="POST", data=body, content_type=kind)
    return status, answer


def wait(server: Server, number: str, seconds: float = 240.0) -> Any:
    ends = time.monotonic() + seconds
    while True:
        status, job, _ = ask(server, f"/api/jobs/{number}")
        assert status == 200
        if job["status"] not in ("waiting", "running"):
            return job
        assert time.monotonic() < ends, job
        time.sleep(0.1)


@pytest.mark.slow
def test_an_upload_is_annotated_and_given_back(server: Server, shelf: Shelf, tmp_path: Path):
    status, job = upload(server, shelf.cells.read_bytes(), name=f"../../{HOSTILE}.h5ad", reference="tiny")
    assert status == 202 and job["name"] == f"{HOSTILE}.h5ad"
    done = wait(server, job["id"])
    assert done["status"] == "done" and done["result"]["labels"] == shelf.annotation.counts(), done
    assert set(done["files"]) == {"annotated.h5ad", "labels.csv", "report.html", "report.json", "annotate.sh"}
    got = {name: ask(server, f"/api/jobs/{job['id']}/files/{name}") for name in done["files"]}
    assert all(status == 200 for status, _, _ in got.values())
    (tmp_path / "a.h5ad").write_bytes(got["annotated.h5ad"][1])
    found = anndata.read_h5ad(tmp_path / "a.h5ad")
    assert found.obs["scvec_label"].astype(str).tolist() == shelf.annotation.label.tolist()
    assert got["labels.csv"][1].decode().splitlines()[0].startswith("cell,scvec_label")
    assert "sandbox" in got["report.html"][2]["content-security-policy"]
    assert HOSTILE not in got["report.html"][1].decode()
    assert got["annotate.sh"][1].decode().splitlines()[-1].startswith("scvec query '<img")
    told = json.dumps({"done": done, "report": got["report.json"][1]})
    assert "scvec-serve-" not in told and str(shelf.store) not in json.dumps(done)
    assert ask(server, f"/api/jobs/{job['id']}/files/upload")[0] == 422
    assert ask(server, f"/api/jobs/{job['id']}", method="DELETE")[0] == 200
    assert ask(server, f"/api/jobs/{job['id']}")[0] == 404
    assert ask(server, f"/api/jobs/{job['id']}/files/labels.csv")[0] == 404


def _as_h5(path: Path, cells: anndata.AnnData) -> None:
    x = cells.X.tocsr()
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group["data"], group["indices"], group["indptr"] = x.data, x.indices, x.indptr
        group["shape"], group["barcodes"] = [cells.n_vars, cells.n_obs], list(cells.obs_names)
        group["features/id"], group["features/name"] = [list(cells.var_names)] * 2


def _as_loom(path: Path, cells: anndata.AnnData) -> None:
    import loompy  # here, because it compiles for seconds

    genes, barcodes = {"Gene": cells.var_names.to_numpy()}, {"CellID": cells.obs_names.to_numpy()}
    loompy.create(str(path), cells.X.T.toarray(), genes, barcodes)


UPLOADS: dict[str, Callable[[Path, anndata.AnnData], Any]] = {
    "x.h5": _as_h5,
    "x.csv": lambda path, cells: cells.to_df().to_csv(path),
    "x.tsv.gz": lambda path, cells: cells.to_df().T.to_csv(path, sep="\t", compression="gzip"),
    "x.loom": _as_loom,
    "x.h5mu": lambda path, cells: mudata.MuData({"rna": cells}).write(path),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", UPLOADS)
def test_other_formats_are_annotated(name: str, server: Server, shelf: Shelf, tmp_path: Path):
    UPLOADS[name](tmp_path / name, anndata.read_h5ad(shelf.cells))
    status, job = upload(server, (tmp_path / name).read_bytes(), name="cells", reference="tiny")
    assert status == 202
    done = wait(server, job["id"])
    assert done["status"] == "done", done["error"]
    assert done["result"]["labels"] == shelf.annotation.counts()
    assert "annotated.h5ad" in done["files"]


def test_formats_of_the_command_line_only_are_refused(server: Server, tmp_path: Path):
    for content in (b"%%MatrixMarket matrix coordinate integer general\n1 1 1\n1 1 5\n", b"X\n\0\0\0\3" * 99):
        status, job = upload(server, content, reference="tiny")
        assert status == 202
        error = wait(server, job["id"])["error"]
        assert error["code"] == "wrong-format" and "the server reads no files" in error["what"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_hostile_uploads_are_harmless(server: Server, shelf: Shelf, tmp_path: Path):
    cases = {case.name: case for case in CASES}
    before = shelf.cells.read_bytes()
    contents: dict[str, Callable[[Path], Path]] = {name: cases[name].build for name in NASTY}
    contents["a path as text"] = make.raw("case.h5ad", b"/etc/passwd")
    contents["a bomb under a name that climbs"] = cases["matrix-bomb"].build
    assert len(contents) >= 20
    sent = {}
    for k, (name, build) in enumerate(contents.items()):
        folder = tmp_path / str(k)
        folder.mkdir()
        # The limits allow at most twenty jobs.
        status, job = upload(server, build(folder).read_bytes(), name=f"../../../tmp/{k}.h5ad")
        assert status == 202, (name, job)
        sent[name] = job["id"]
    for name, number in sent.items():
        job = wait(server, number, 500)
        assert job["status"] == "failed" and job["error"]["what"], (name, job)
        assert "bug" not in job["error"]["what"] and "memory" not in job["error"]["what"], (name, job)
        assert "scvec-serve-" not in json.dumps(job) and "root:" not in json.dumps(job), (name, job)
    assert ask(server, "/api/info")[0] == 200
    assert shelf.cells.read_bytes() == before


@pytest.mark.parametrize(
    "path",
    [
        "/api/jobs/../../etc/passwd",
        "/api/jobs/%2e%2e%2f%2e%2e%2fetc%2fpasswd/files/labels.csv",
        f"/api/jobs/{'0' * 32}/files/..%2f..%2f..%2fetc%2fpasswd",
        f"/api/jobs/{'0' * 32}/files/labels.csv",
        "/assets/..%2f..%2f..%2fsetup.cfg",
        "/assets/report.html",
        "/docs",
        "/openapi.json",
    ],
)
def test_paths_lead_nowhere(server: Server, path: str):
    status, body, _ = ask(server, path)
    assert status in (404, 422) and b"root:" not in json.dumps(body).encode()


@pytest.mark.slow
def test_searches(server: Server, shelf: Shelf):
    status, found, _ = ask(server, "/api/search/genes?q=insulin&k=3")
    assert status == 200 and len(found["hits"]) == 3 and found["hits"][0]["symbol"] == "INS"
    status, found, _ = ask(server, "/api/search/cells?q=glucagon&reference=tiny&k=5")
    assert status == 200 and found["labels"][0]["label"] == "alpha" and len(found["hits"]) == 5
    status, found, _ = ask(server, "/api/search/cells?q=glucagon&where=nonsense%20%3D%201")
    assert status == 400 and "no column 'nonsense'" in found["error"]["what"]
    assert ask(server, "/api/search/genes")[0] == 422
    assert ask(server, "/api/search/genes?q=x&k=100000")[0] == 422


def test_the_schema_is_there(server: Server):
    status, schema, _ = ask(server, "/api/openapi.json")
    assert status == 200 and schema["openapi"].startswith("3.")
    assert {"/api/info", "/api/jobs", "/api/search/genes", "/api/search/cells"} <= set(schema["paths"])


def test_an_unknown_reference_is_refused_at_once(server: Server, shelf: Shelf):
    status, answer = upload(server, b"x", reference="nope")
    assert status == 400 and "no reference 'nope'" in answer["error"]["what"]


def test_every_refusal_has_the_same_body(server: Server, shelf: Shelf):
    broken = {"method": "POST", "content_type": "multipart/form-data; boundary=x"}
    cases = [
        (400, "bad-form", ask(server, "/api/jobs", data=b"nonsense", **broken)),
        (
            400,
            "bad-form",
            ask(server, "/api/jobs", data=b"--x", method="POST", content_type="multipart/form-data"),
        ),
        (422, "usage", ask(server, "/api/jobs", data=b"--x--\r\n", **broken)),
        (405, "usage", ask(server, "/api/jobs", method="PUT", data=b"")),
        (404, "not-found", ask(server, "/nowhere")),
        (400, "unknown-reference", ask(server, "/api/search/cells?q=insulin&reference=nope")),
        (400, "unknown-cell", ask(server, "/api/search/cells?like=nobody&reference=tiny")),
    ]
    for status, code, (got, body, _) in cases:
        assert (got, body["error"]["code"]) == (status, code), body
        assert set(body["error"]) == {"code", "what", "where", "fix"} and body["error"]["what"]
        assert str(shelf.store.parent) not in json.dumps(body)


# -- limits, with stand-ins for the child ---------------------------------------------------------------


@pytest.fixture
def idle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Jobs]:
    """A queue that starts no job."""
    monkeypatch.setattr(Jobs, "_work", lambda self: None)
    made = Jobs(tmp_path / "store", tmp_path, Limits(jobs=2))
    yield made
    made.close()


def test_too_many_jobs_are_refused(idle: Jobs):
    for _ in range(2):
        number, _folder = idle.new_folder()
        idle.add(number, "x", QueryOptions())
    with pytest.raises(Busy):
        idle.new_folder()


def test_the_oldest_finished_job_is_deleted(idle: Jobs):
    numbers = []
    for _ in range(4):
        number, folder = idle.new_folder()
        job = idle.add(number, "x", QueryOptions())
        job.status = "done"
        numbers.append((number, folder))
    there = [idle.get(number) is not None for number, _ in numbers]
    assert there == [False, False, True, True]
    assert [folder.exists() for _, folder in numbers] == there


def run_child(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: str, limits: Limits) -> Any:
    """Run one job with this program as its child process."""
    real = process_module.subprocess.Popen

    def popen(words: list[str], **options: Any) -> Any:
        return real([words[0], "-c", program], **options)

    monkeypatch.setattr(process_module.subprocess, "Popen", popen)
    jobs = Jobs(tmp_path / "store", tmp_path, limits)
    try:
        number, folder = jobs.new_folder()
        (folder / "upload").write_bytes(b"x")
        job = jobs.add(number, "mine.h5ad", QueryOptions())
        ends = time.monotonic() + 60
        while job.status in ("waiting", "running") and time.monotonic() < ends:
            time.sleep(0.05)
        return job
    finally:
        jobs.close()


def test_a_job_that_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    job = run_child(monkeypatch, tmp_path, "import time; time.sleep(60)", Limits(seconds=0.5))
    assert job.status == "failed" and "longer than" in job.error["what"]


def test_a_job_that_takes_too_much_memory_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    if not memory_of(1) and not Path("/proc/self/statm").exists():
        pytest.skip("this system does not report the memory of a process")
    program = "import time; x = bytearray(300_000_000); x[::4096] = b'1' * len(x[::4096]); time.sleep(60)"
    job = run_child(monkeypatch, tmp_path, program, Limits(memory=2**27))
    assert job.status == "failed" and "memory" in job.error["what"]


def test_a_child_that_says_nothing_or_nonsense_is_a_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    job = run_child(monkeypatch, tmp_path, "print('not json'); print('[1]')", Limits())
    assert job.status == "failed" and job.error["what"] == "the job ended without a message"


def test_messages_do_not_tell_of_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    program = (
        "import json, os; where = os.path.join(os.getcwd(), 'upload');"
        " print(json.dumps({'error': {'what': 'bad', 'where': where, 'fix': ''}}))"
    )
    job = run_child(monkeypatch, tmp_path, program, Limits())
    assert job.error == {"what": "bad", "where": "mine.h5ad", "fix": ""}


def test_the_script_cannot_be_made_to_do_more():
    text = script("-x; rm -rf ~.h5ad", QueryOptions(reference="pancreas"))
    line = text.splitlines()[-1]
    assert line.startswith("scvec query './-x; rm -rf ~.h5ad' --reference pancreas -o annotated.h5ad")
