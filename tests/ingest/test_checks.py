"""Files are walked before they are read. The list of bad files is in tests/bad_inputs."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import scvec
from scvec.base.errors import InputError, ResourceError, ScvecError, disk_errors, reading
from scvec.ingest.cells.readers.checks import broken_heap, check_h5ad, open_h5ad

DEMO = Path(scvec.__file__).parent / "data"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    x = sp.csr_matrix(np.random.default_rng(0).poisson(1.0, (40, 50)).astype(np.float32))
    adata = anndata.AnnData(x, obs=pd.DataFrame({"t": ["a", "b"] * 20}, index=[f"c{i}" for i in range(40)]))
    adata.obsm["X_pca"] = np.ones((40, 3))
    adata.write_h5ad(tmp_path / "x.h5ad")
    return tmp_path / "x.h5ad"


def test_good_files_pass(path: Path) -> None:
    check_h5ad(path)
    check_h5ad(DEMO / "baron_human.h5ad")
    with open_h5ad(str(path)) as file:
        assert set(file) >= {"X", "obs", "var"}


def test_soft_links_within_the_file_named_types_and_references_are_fine(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["layers/same"] = h5py.SoftLink("/X")
        file["uns/type"] = np.dtype("f4")
        file["uns/also"] = file["obsm/X_pca"]
        file["uns"].attrs["ref"] = file["X"].ref
    check_h5ad(path)


@pytest.mark.parametrize("group", ["uns", "obs", "layers", "a/new/one"])
def test_links_out_are_found_anywhere(path: Path, group: str) -> None:
    with h5py.File(path, "r+") as file:
        file.require_group(group)["link"] = h5py.ExternalLink("/etc/passwd", "/x")
    with pytest.raises(InputError, match=r"links to another file \(/etc/passwd\)"):
        check_h5ad(path)


def test_a_target_that_a_soft_link_hides_is_found(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        made = file.create_dataset("uns/big", (10**9,), "f8", chunks=(1000,))
        made.attrs["encoding-type"] = "array"
        file["layers/sly"] = h5py.SoftLink("/uns/big")
    with pytest.raises(InputError, match="stores only 0 bytes"):
        check_h5ad(path)


def test_zeros_that_gzip_well_are_no_bomb(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file.create_dataset(
            "layers/zeros", data=np.zeros((40, 10**6), "f4"), compression="gzip", chunks=(40, 10**5)
        )
    check_h5ad(path)


def test_huge_pieces_are_refused(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file.create_dataset("layers/slab", (1, 10**8), "f4", chunks=(1, 10**8), compression="gzip")[0, :9] = 1
    with pytest.raises(InputError, match=r"chunks of 400\.0 MB|stores only"):
        check_h5ad(path, memory="1G")


@pytest.mark.parametrize("place", ["attribute", "column"])
def test_sequences_where_texts_belong_are_refused(path: Path, place: str) -> None:
    with h5py.File(path, "r+") as file:
        if place == "column":
            file["obs"].create_dataset("lists", (40,), h5py.vlen_dtype(np.int8))
        else:
            value = np.empty(1, object)
            value[0] = np.array([1, 2], np.int8)
            file["obs"].attrs.create("encoding-type", value, dtype=h5py.vlen_dtype(np.int8))
    with pytest.raises(InputError, match="a type that h5ad does not use"):
        check_h5ad(path)


def test_circles_of_hard_links_end(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["uns/a/b/c"] = 1
        file["uns/a/b/up"] = file["uns/a"]
    with pytest.raises(InputError, match="contains itself"):
        check_h5ad(path)


def test_a_file_open_for_writing_elsewhere_is_said_to_be(path: Path) -> None:
    code = (
        f"import h5py, sys; f = h5py.File({str(path)!r}, 'r+'); print('open', flush=True); sys.stdin.read()"
    )
    writer = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert writer.stdin is not None and writer.stdout is not None
    try:
        writer.stdout.readline()
        with pytest.raises(InputError, match="another program has the file open"):
            check_h5ad(path)
    finally:
        writer.communicate()


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_said_to_be(path: Path) -> None:
    path.chmod(0)
    with pytest.raises(InputError, match="permission denied"):
        check_h5ad(path)


def test_names_with_control_characters_do_not_reach_the_terminal(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["uns"]["a\x1b[31m\nb"] = h5py.ExternalLink("x\x1b]0;y", "/x")
    with pytest.raises(InputError) as caught:
        check_h5ad(path)
    assert "\x1b" not in str(caught.value) and len(str(caught.value).splitlines()) <= 3


def test_foreign_errors_are_translated_once() -> None:
    for error in (
        OSError("x"),
        KeyError("x"),
        UnicodeDecodeError("utf8", b"x", 0, 1, "bad"),
        RecursionError(),
    ):
        with pytest.raises(InputError, match="damaged"), reading("f.h5ad", "obs"):
            raise error
    with pytest.raises(ResourceError), reading("f.h5ad"):
        raise MemoryError
    with pytest.raises(InputError, match="mine"), reading("f.h5ad"):
        raise InputError("mine")
    for text in (
        "write failed: errno = 28, error message = 'No space left on device'",
        "x errno = 122, quota",
    ):
        with pytest.raises(ResourceError), disk_errors("f.h5ad"):
            raise RuntimeError(text)
    with pytest.raises(RuntimeError), disk_errors("f.h5ad"):
        raise RuntimeError("errno = 280")


FUZZ = """
import random, sys, warnings
from pathlib import Path
from scvec.base.errors import ScvecError
from scvec.ingest.cells.source import CellSource

warnings.simplefilter("ignore")
data, work = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2])
for seed in range(int(sys.argv[3])):
    rng = random.Random(seed)
    damaged = bytearray(data)
    if seed % 3 == 0:
        del damaged[rng.randrange(len(damaged)):]
    else:
        for _ in range(rng.choice([1, 4, 30])):
            damaged[rng.randrange(len(damaged))] ^= rng.randrange(1, 256)
    work.write_bytes(damaged)
    try:
        with CellSource.open(work, memory="1G") as source:
            cells = sum(chunk.shape[0] for chunk in source.chunks(16))
            if not cells == source.n_obs == len(source.obs) == len(source.totals):
                raise SystemExit(f"seed {seed}: {cells} cells")
    except ScvecError as error:
        if len(error.lines()) > 3:
            raise SystemExit(f"seed {seed}: {error}")
print("survived")
"""


def test_damaged_bytes_never_crash_or_hang(path: Path) -> None:
    child = subprocess.run(
        [sys.executable, "-c", FUZZ, str(path), str(path.with_name("damaged.h5ad")), "150"],
        capture_output=True,
        text=True,
        timeout=500,
        cwd=Path(scvec.__file__).parents[1],
    )
    assert child.returncode == 0 and child.stdout.strip() == "survived", child.stderr[-2000:]


def test_every_refusal_names_the_file(tmp_path: Path) -> None:
    for name, content in (("a.h5ad", b""), ("b.h5ad", b"text"), ("c.h5ad", b"\x00" * 99)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ScvecError) as caught:
            check_h5ad(tmp_path / name)
        assert name in caught.value.where and caught.value.exit_code == 2


@pytest.fixture
def heaped(tmp_path: Path) -> Path:
    with h5py.File(tmp_path / "x.h5ad", "w") as file:
        file["X"] = [[1.0]]
        file["obs"] = ["text of one length", "and another"] * 300
        file["var"] = ["more"]
    return tmp_path / "x.h5ad"


def heaps(data: bytes) -> list[int]:
    found = [data.find(b"GCOL")]
    while (following := data.find(b"GCOL", found[-1] + 4)) >= 0:
        found.append(following)
    return found


def objects(data: bytes, heap: int) -> list[tuple[int, int, int]]:
    """Position, number and length of every object of a heap."""
    end, position, found = heap + struct.unpack_from("<Q", data, heap + 8)[0], heap + 16, []
    while position + 16 <= end:
        number, size = struct.unpack_from("<H6xQ", data, position)
        found.append((position, number, size))
        position += size if number == 0 else 16 + (size + 7) // 8 * 8
    return found


def test_sound_heaps_pass(heaped: Path) -> None:
    assert heaps(heaped.read_bytes())[0] > 0
    assert broken_heap(heaped) is None
    assert broken_heap(DEMO / "baron_human.h5ad") is None


def test_heaps_are_stepped_through_as_hdf5_wrote_them(heaped: Path) -> None:
    data = heaped.read_bytes()
    texts = [
        data[p + 16 : p + 16 + size].decode()
        for h in heaps(data)
        for p, number, size in objects(data, h)
        if number
    ]
    assert sorted(texts) == sorted(["text of one length", "and another"] * 300 + ["more"])


@pytest.mark.timeout(30)
@pytest.mark.parametrize("size", [0, 8, 2**64 - 16, 2**63, 4096])
@pytest.mark.parametrize("which", ["free", "used"])
def test_lengths_that_lead_nowhere_are_found(heaped: Path, size: int, which: str) -> None:
    data = bytearray(heaped.read_bytes())
    heap = heaps(data)[-1]
    free = [p for p, number, _ in objects(data, heap) if number == 0]
    used = [p for p, number, _ in objects(data, heap) if number]
    assert free and used
    struct.pack_into("<Q", data, (free if which == "free" else used)[0] + 8, size)
    heaped.write_bytes(data)
    if (which, size) in (("used", 0), ("used", 8)):
        # The steps go on from the wrong place: into text, which may or may not make sense.
        assert broken_heap(heaped) in (heap, None)
        return
    assert broken_heap(heaped) == heap
    with pytest.raises(InputError, match="texts cannot be read"):
        check_h5ad(heaped)


def references(data: bytes) -> list[int]:
    """Where references to texts begin: a length, the address of a heap, and the number of an object in it."""
    found = []
    for heap in heaps(data):
        numbers = {number: size for _, number, size in objects(data, heap) if number}
        at = data.find(struct.pack("<Q", heap))
        while at >= 0:
            length, number = (struct.unpack_from("<I", data, at + k)[0] for k in (-4, 8))
            if numbers.get(number) == length:
                found.append(at - 4)
            at = data.find(struct.pack("<Q", heap), at + 1)
    return found


@pytest.mark.parametrize("size", [2**32 - 1, 2**24 + 7, 2**16])
def test_texts_longer_than_their_heap_are_found(path: Path, size: int) -> None:
    """Of the texts and the attributes of all that is read: HDF5 would ask for as much memory."""
    data = path.read_bytes()
    with h5py.File(path) as file:
        names = len(file["obs"]) + 2  # columns, their order and the index
        assert names and len(references(data)) > 40 + 50
    found = 0
    for at in references(data):
        damaged = bytearray(data)
        struct.pack_into("<I", damaged, at, size)
        path.write_bytes(damaged)
        try:
            check_h5ad(path)
        except InputError as error:
            assert "longer than the file" in str(error)
            found += 1
    assert found >= len(references(data)) - unread(path, data)
    path.write_bytes(data)
    check_h5ad(path)


def unread(path: Path, data: bytes) -> int:
    """Texts of groups that nothing reads: attributes of obsm, uns and the like, and of the root."""
    path.write_bytes(data)
    with h5py.File(path) as file:
        others = [n for n in file if n not in ("X", "layers", "raw", "obs", "var")]
        n = sum(len(file[o].attrs) for o in others) + len(file.attrs)
        return n + sum(len(file[f"{o}/{k}"].attrs) for o in others for k in file[o])


@pytest.mark.parametrize("options", [{"compression": "gzip", "shuffle": True}, {"compression": "lzf"}, {}])
@pytest.mark.parametrize("row", [0, 13, 39])
def test_texts_in_packed_chunks_are_compared_with_their_heaps(path: Path, options: dict, row: int) -> None:
    def column(length: int | None) -> None:
        with h5py.File(path, "r+") as file:
            if "obs/note" in file:
                del file["obs/note"]
            texts = [f"text {i} of some length" for i in range(40)]
            made = file["obs"].create_dataset("note", (40,), h5py.string_dtype(), chunks=(16,), **options)
            made[:] = texts
            if length is None:
                return
        # What a chunk holds is packed anew by HDF5, as opaque values of 16 bytes.
        with h5py.File(path, "r+") as file:
            made, first = file["obs/note"], row // 16 * 16
            mask, raw = made.id.read_direct_chunk((first,))
            with h5py.File("x", "w", driver="core", backing_store=False) as other:
                # HDF5 leaves out shuffling where values have no fixed size.
                plain = {k: v for k, v in options.items() if k != "shuffle"}
                twin = other.create_dataset("x", (16,), "V16", chunks=(16,), **plain)
                twin.id.write_direct_chunk((0,), raw)
                values = bytearray(twin[:].tobytes())
                struct.pack_into("<I", values, 16 * (row - first), length)
                twin[:] = np.frombuffer(bytes(values), "V16")
                other.flush()
                _, packed = twin.id.read_direct_chunk((0,))
            made.id.write_direct_chunk((first,), packed, mask)

    column(None)
    check_h5ad(path)
    column(2**32 - 2)
    with pytest.raises(InputError, match="longer than the file"):
        check_h5ad(path)
