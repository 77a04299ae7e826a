"""The HTTP client: every fault has one meaning, nothing leaves for another host, no key is shown."""

import asyncio
import gc
import logging
import traceback

import pytest
from fake_faults import GENERIC, Faults
from fake_genes import fake_genes
from fake_server import FakeServer

from scvec.base.errors import InputError
from scvec.base.settings import Secret, ServiceSettings, is_loopback
from scvec.ingest.sources import http
from scvec.ingest.sources.http import HttpClient, service_url
from scvec.ingest.sources.retry import Caller, RateLimit, ServiceError

DEFAULT = "https://eutils.ncbi.nlm.nih.gov/entrez/eutils"
CANARY = "canaryKey0123456789abcdef"
FORM = {"db": "gene", "id": "1001", "api_key": CANARY}


def client_of(server, *, attempts=1, timeout=None, pace=0.001):
    return HttpClient(
        "ncbi",
        service_url("ncbi", DEFAULT, f"{server.url}/entrez/eutils"),
        caller=Caller("ncbi", attempts=attempts, pace=pace, seed=1),
        rate=RateLimit("test", 0),
        timeout=timeout,
    )


def post(client, shape=dict, path="esummary.fcgi", form=FORM):
    async def main():
        async with client:
            return await client.post_json(path, form, shape)

    return asyncio.run(main())


def refused(server, fault, *, shape=dict, timeout=None, total=None, attempts=1):
    """The error that a fault becomes."""
    server.faults = Faults.always(fault)
    server.requests.clear()
    client = client_of(server, timeout=timeout, attempts=attempts)
    if total is not None:
        client._timeout = http.aiohttp.ClientTimeout(total=total, sock_read=timeout)
    with pytest.raises(ServiceError) as caught:
        post(client, shape)
    return caught.value


@pytest.fixture(scope="module")
def server():
    Secret(CANARY)
    with FakeServer(fake_genes(3)) as server:
        yield server


@pytest.fixture(autouse=True)
def _healthy(server):
    server.faults, server.retry_after = Faults.none(), 0.0
    server.requests.clear()


def test_an_answer_is_json_and_the_key_travels_in_the_body(server):
    body = post(client_of(server))
    assert body["result"]["1001"]["name"] == "G1001"
    request = server.requests[0]
    assert request.method == "POST" and request.query == {}
    assert request.body["api_key"] == CANARY
    assert CANARY not in f"{request.path}{request.headers}"
    assert request.headers["User-Agent"].startswith("scvec/")


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("429", "transient"),
        ("429-after", "transient"),
        ("429-date", "transient"),
        ("429-ms", "transient"),
        ("500", "transient"),
        ("502", "transient"),
        ("503", "transient"),
        ("reset", "transient"),
        ("malformed", "transient"),
        ("html", "transient"),
        ("deep", "transient"),
        ("400", "rejected"),
        ("413", "rejected"),
        ("414", "rejected"),
        ("422", "rejected"),
        ("401", "auth"),
        ("403", "auth"),
        ("404", "address"),
        ("huge", "rejected"),
        ("huge-chunked", "rejected"),
        ("redirect", "address"),
        ("redirect-loop", "address"),
    ],
)
def test_every_fault_has_a_kind(server, fault, kind):
    error = refused(server, fault)
    assert error.kind == kind
    assert "ncbi" in error.reason


def test_silence_is_waited_for_no_longer_than_set(server):
    # The server would answer after an hour.
    error = refused(server, "timeout", timeout=0.2)
    assert error.kind == "transient" and "in time" in error.reason


def test_a_slow_drip_ends_with_the_time_for_the_whole_answer(server):
    server.drip_seconds = 0.05
    error = refused(server, "drip", timeout=5, total=0.5)
    assert error.kind == "transient" and "in time" in error.reason


def test_the_whole_answer_has_a_time_by_default(server):
    timeout = client_of(server)._timeout
    assert (timeout.connect, timeout.sock_connect, timeout.sock_read) == (5, 5, 30)
    assert timeout.total is not None and timeout.total < 60


@pytest.mark.parametrize("fault", ["400", "401", "403", "404", "413", "422", "redirect"])
def test_what_will_not_change_is_not_asked_again(server, fault):
    refused(server, fault, attempts=8)
    assert len(server.requests) == 1


@pytest.mark.parametrize("fault", ["429", "500", "503", "reset", "malformed"])
def test_what_may_pass_is_asked_again(server, fault):
    server.faults = Faults.script([fault, fault])
    assert post(client_of(server, attempts=3))["result"]["uids"] == ["1001"]
    assert len(server.requests) == 3


@pytest.mark.parametrize("fault", ["429-after", "429-ms", "429-date"])
def test_the_wait_that_the_service_asks_for_is_kept(server, fault):
    # A date has whole seconds: at least one of two is left.
    server.retry_after = 2.0 if fault == "429-date" else 0.4
    server.faults = Faults.script([fault])
    post(client_of(server, attempts=2))
    first, second = (r.time for r in server.requests)
    assert second - first >= (0.9 if fault == "429-date" else 0.4)


def test_an_invalid_key_under_status_400_is_a_matter_of_the_key(server):
    server.keys = {"another"}
    try:
        with pytest.raises(ServiceError) as caught:
            post(client_of(server, attempts=8))
    finally:
        server.keys = None
    assert caught.value.kind == "auth"
    assert len(server.requests) == 1


def test_the_reason_of_a_refusal_is_shown_but_not_the_key_in_it(server):
    error = refused(server, "400")
    assert "refused (400)" in error.reason and CANARY not in error.reason


def test_a_key_is_hidden_before_a_message_is_cut():
    said = http._message({"error": {"message": "x" * 150 + CANARY}})
    assert 100 < len(said) <= 160 and "canary" not in said


@pytest.mark.parametrize("shape", [list, dict])
def test_json_of_another_shape_is_no_answer(server, shape):
    path = "esummary.fcgi" if shape is list else "/../../v3/gene"
    client = client_of(server)
    if shape is dict:
        client.url = client.url.with_path("/v3")
        path = "gene"
    with pytest.raises(ServiceError) as caught:
        post(client, shape, path, {"ids": "1001"})
    assert caught.value.kind == "transient"


@pytest.mark.parametrize(
    "body", [b'{"a": NaN}', b'{"a": -Infinity}', b'{"a": 1', b"\xff\xfe{}", b"", b"null"]
)
def test_json_is_read_strictly(server, body):
    with pytest.raises(ServiceError):
        client_of(server)._parsed(body, dict)


def test_a_huge_number_is_an_error_and_not_a_crash(server):
    with pytest.raises(ServiceError):
        client_of(server)._parsed(b'{"a": ' + b"9" * 10_000 + b"}", dict)


# Where requests may go -------------------------------------------------------------------------------------


def test_no_other_host_hears_of_a_redirect(server):
    with FakeServer(fake_genes(1)) as other:
        server.redirect_to = f"http://localhost:{other.url.rpartition(':')[2]}/entrez/eutils/esummary.fcgi"
        error = refused(server, "redirect")
        assert "another host" in error.reason
        # Nor does another port of the same host.
        server.redirect_to = f"{other.url}/entrez/eutils/esummary.fcgi"
        error = refused(server, "redirect")
        assert "another port" in error.reason
        assert other.requests == []


def test_redirects_on_one_host_are_followed_three_times(server):
    server.faults = Faults.script(["redirect-loop"] * 3)
    assert post(client_of(server))["result"]["uids"] == ["1001"]
    assert [r.method for r in server.requests] == ["POST"] * 4
    assert server.requests[-1].body == FORM
    refused(server, "redirect-loop")
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    ("start", "location", "followed"),
    [
        ("https://a.org/x", "/y", True),
        ("https://a.org/x", "https://a.org/y", True),
        ("https://a.org/x", "http://a.org/y", False),  # the key would travel in the open
        ("https://a.org/x", "https://a.org:8443/y", False),
        ("https://a.org/x", "https://b.org/y", False),
        ("https://a.org/x", "https://a.org@b.org/y", False),
        ("https://a.org/x", "//b.org/y", False),
        ("https://a.org/x", "ftp://a.org/y", False),
        ("https://a.org/x", "http://[::1", False),
        ("https://a.org/x", "", False),
        ("http://a.org/x", "https://a.org/y", True),
    ],
)
def test_which_redirects_may_be_followed(server, start, location, followed):
    client = client_of(server)
    if followed:
        assert client._followed(http.URL(start), location).path == "/y"
    else:
        with pytest.raises(ServiceError) as caught:
            client._followed(http.URL(start), location)
        assert caught.value.kind == "address"


@pytest.mark.parametrize(
    "given",
    [
        "ftp://a.org",
        "a.org",
        "https://",
        "https://user:canaryPassword1@a.org",
        "https://a.org?api_key=canaryPassword1",
        "https://a.org#canaryPassword1",
        "http://[::1",
        "https://a.org:port",
        "file:///etc/passwd",
    ],
)
def test_an_address_that_is_none_is_said_without_what_is_secret_in_it(given):
    with pytest.raises(InputError) as caught:
        service_url("ncbi", DEFAULT, given)
    assert "canaryPassword1" not in "".join(traceback.format_exception(caught.value))


def test_the_address_is_the_one_given_else_the_own():
    assert str(service_url("ncbi", DEFAULT)) == DEFAULT
    assert str(service_url("ncbi", DEFAULT, " http://127.0.0.1:8/x/ ")) == "http://127.0.0.1:8/x"


@pytest.mark.parametrize(
    ("per_second", "base_url", "key", "expected"),
    [
        (None, None, "", 3),
        (None, None, "k" * 20, 10),
        (50, None, "", 3),
        (0, None, "", 3),
        (1, None, "", 1),
        (50, "https://EUTILS.ncbi.nlm.nih.gov/entrez/eutils", "", 3),
        (None, "http://127.0.0.1:1", "", 3),
        (50, "http://127.0.0.1:1", "", 50),
        (0, "http://127.0.0.1:1", "", 0),
    ],
)
def test_the_own_host_never_gets_more_than_its_limit(per_second, base_url, key, expected):
    settings = ServiceSettings(api_key=Secret(key), requests_per_second=per_second)
    client = HttpClient.of("ncbi", DEFAULT, settings, limit=10 if key else 3, base_url=base_url)
    assert client.rate.per_second == expected
    assert client.url.path == "/entrez/eutils"


def test_every_request_takes_a_turn(server):
    class Counting:
        n = 0

        async def turn(self):
            self.n += 1

    client = client_of(server, attempts=4)
    client.rate = Counting()
    server.faults = Faults.script(["500", "redirect-loop", None])
    post(client)
    assert client.rate.n == len(server.requests) == 3


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.8.9.1"])
def test_this_machine_is_known(host):
    assert is_loopback(host)
    assert not is_loopback(f"{host}.org")


# Secrets ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        *GENERIC,
        "html",
        "deep",
        "400",
        "401",
        "403",
        "404",
        "413",
        "422",
        "redirect",
        "redirect-loop",
        "no server",
    ],
)
def test_a_key_is_in_no_message_trace_or_log(server, fault, caplog):
    caplog.set_level(logging.DEBUG)
    server.redirect_to = f"http://localhost:9/?api_key={CANARY}"
    server.faults = Faults.always(fault)
    client = client_of(server, timeout=0.2)
    client._timeout = http.aiohttp.ClientTimeout(total=0.5, sock_read=0.2)
    if fault == "no server":
        client.url = http.URL("http://127.0.0.1:9/entrez")
    with pytest.raises(ServiceError) as caught:
        post(client)
    error = caught.value
    seen = [*traceback.format_exception(error), repr(error), str(error), error.reason, repr(vars(error))]
    seen += [str(error.translated("ncbi")), repr(client), repr(client.__dict__), caplog.text]
    # Nothing of aiohttp's is chained either: it knows the address, the headers and more.
    assert error.__cause__ is None
    assert error.__context__ is None or isinstance(error.__context__, ServiceError)
    assert CANARY not in "".join(seen)


def test_the_connections_are_closed(server):
    client = client_of(server)
    post(client)
    assert client._session is None
    with pytest.raises(RuntimeError):
        asyncio.run(client._fetched("esummary.fcgi", FORM))
    gc.collect()  # an unclosed session would warn
