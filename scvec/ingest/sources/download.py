"""Large files from the network: streamed to the disk, resumed, bounded and checked."""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import re
import shutil
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from scvec import __version__
from scvec.base.errors import InputError, NetworkError, ResourceError, StoreError
from scvec.base.types import Progress, no_progress

__all__ = ["Address", "cache_folder", "download", "from_hub"]

#: Files larger than this are refused unless a user says otherwise.
MAX_BYTES = 20 << 30
BLOCK = 1 << 20
#: Seconds without a byte after which a server is given up.
TIMEOUT = 60.0
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Address:
    """``https://HOST/PATH#sha256=HEX``: where a file is and what it must be.

    Raises
    ------
    InputError
        The address is not one of http or https, or the hash is not a SHA-256.
    """

    url: str
    sha256: str = ""

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("https", "http") or not parts.hostname or parts.username or parts.password:
            raise InputError(
                "this is not an address of a file", self.shown, "give https://HOST/FILE", code="bad-address"
            )
        if self.sha256 and not _SHA256.fullmatch(self.sha256):
            raise InputError("a SHA-256 has 64 hexadecimal digits", self.shown, "copy it once more")

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read an address and the hash behind ``#sha256=``."""
        url, _, fragment = text.partition("#")
        known = fragment.removeprefix("sha256=").lower() if fragment.startswith("sha256=") else ""
        if fragment and not known:
            raise InputError("behind '#' stands a hash", text[:200], "write #sha256=HEX")
        return cls(url, known)

    @property
    def shown(self) -> str:
        """The address without what may be secret in it."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.hostname or ''}{parts.path}"

    @property
    def file_name(self) -> str:
        """Last part of the path."""
        return unquote(urlsplit(self.url).path).rpartition("/")[2]


def cache_folder() -> Path:
    """Return the folder of downloads that are under way."""
    import platformdirs

    return Path(platformdirs.user_cache_path("scvec", appauthor=False)) / "downloads"


def download(
    address: Address, folder: Path, *, max_bytes: int = MAX_BYTES, progress: Progress = no_progress
) -> Path:
    """Fetch a file into ``folder`` and return its path; go on where an earlier attempt ended.

    Raises
    ------
    NetworkError
        The server cannot be reached, breaks off, or says no.
    ResourceError
        The file is larger than ``max_bytes``, or than the room on the disk.
    StoreError
        Its SHA-256 is another; it is deleted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256(f"{address.url} {address.sha256}".encode()).hexdigest()[:24]
    part, done = folder / f"{key}.part", folder / f"{key}.scvec"
    if not done.exists():
        try:
            # A part that does not fit the server's file is thrown away once.
            if not _fetch(address, part, max_bytes, progress):
                _fetch(address, part, max_bytes, progress)
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise ResourceError(
                    "the disk is full", str(folder), "free space", code="disk-full"
                ) from error
            reason = getattr(error, "reason", error)
            what = f"the download broke off ({type(error).__name__}: {reason})"
            raise NetworkError(what, address.shown, "run the command again: it goes on from there") from error
        os.replace(part, done)
    if address.sha256:
        digest = hashlib.sha256()
        with open(done, "rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
        if digest.hexdigest() != address.sha256:
            done.unlink()
            raise StoreError(
                f"the file is not the one that was published (its SHA-256 is {digest.hexdigest()[:16]}...)",
                address.shown,
                "get the address again from where it was published",
            )
    return done


def _fetch(address: Address, part: Path, max_bytes: int, progress: Progress) -> bool:
    """Stream what is left of a file; return False where the part there was of no use and is gone."""
    have = part.stat().st_size if part.exists() else 0
    asked = urllib.request.Request(address.url, headers={"User-Agent": f"scvec/{__version__}"})
    if have:
        asked.add_header("Range", f"bytes={have}-")
    try:
        answer = urllib.request.urlopen(asked, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if have and error.code == 416:
            part.unlink()
            return False
        what = f"the server answers {error.code}"
        raise NetworkError(what, address.shown, "check the address, or try later") from error
    with answer:
        if answer.status == 200:
            have = 0
        elif not str(answer.headers.get("content-range", "")).startswith(f"bytes {have}-"):
            part.unlink(missing_ok=True)
            return False
        told = str(answer.headers.get("content-length", ""))
        total = have + int(told) if told.isdigit() else None
        _check_room(address, part.parent, total, have, max_bytes)
        with open(part, "ab" if have else "wb") as file:
            while block := answer.read(BLOCK):
                have += len(block)
                if have > max_bytes:
                    raise _too_large(address, max_bytes)
                file.write(block)
                progress("downloading", have, total)
    if total is not None and have != total:
        raise NetworkError("the download broke off", address.shown, "run the command again: it goes on")
    return True


def _check_room(address: Address, folder: Path, total: int | None, have: int, max_bytes: int) -> None:
    if total is None:
        return
    if total > max_bytes:
        raise _too_large(address, max_bytes)
    if total - have > shutil.disk_usage(folder).free:
        raise ResourceError(f"the disk has no room for {total:,} bytes", str(folder), "free space")


def _too_large(address: Address, max_bytes: int) -> ResourceError:
    return ResourceError(
        f"the file is larger than {max_bytes:,} bytes", address.shown, "check the address, or give --max-size"
    )


def from_hub(text: str, *, trust: bool) -> tuple[Path, str]:
    """Fetch ``hf:owner/name[@commit][:file]`` from Hugging Face's hub; return its path and full address.

    Raises
    ------
    InputError
        The address is not one, or names no commit and ``trust`` is False.
    NetworkError
        The hub cannot be reached or has no such file.
    """
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    found = re.fullmatch(r"hf:([\w.-]+/[\w.-]+)(?:@([\w.-]+))?(?::([\w./-]+))?", text)
    if found is None or ".." in text:
        raise InputError(
            "this is not an address on the hub",
            text[:200],
            "write hf:OWNER/NAME@COMMIT:FILE",
            code="bad-address",
        )
    repo, commit, file = found.groups()
    if not trust and not re.fullmatch(r"[0-9a-f]{40}", commit or ""):
        raise InputError(
            "the address names no commit, so that its file may change",
            text,
            f"write hf:{repo}@COMMIT with its 40 digits, or give --trust",
            code="bad-address",
        )
    try:
        info = HfApi().model_info(repo, revision=commit)
        names = [s.rfilename for s in info.siblings or [] if s.rfilename.endswith(".scvec")]
        if file is None:
            if len(names) != 1:
                what = f"the repository holds {len(names)} packs"
                raise InputError(what, text, f"name one: hf:{repo}@{info.sha}:FILE")
            file = names[0]
        path = hf_hub_download(repo, file, revision=info.sha)
    except (HfHubHTTPError, OSError, ValueError) as error:
        what = f"the hub does not give the file ({type(error).__name__})"
        raise NetworkError(what, text, "check the address, or set HF_ENDPOINT") from error
    return Path(path), f"hf:{repo}@{info.sha}:{file}"
