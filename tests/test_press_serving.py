"""The server of the built site: what it shows, and what it does not."""

import http.client
import threading

import pytest

from fusionlib.press.serving import make_server


@pytest.fixture
def ask(tmp_path):
    """Asks the server for a path, byte by byte as it is given; (status, body)."""
    site = tmp_path / "site"
    (site / "folder").mkdir(parents=True)
    (site / "index.html").write_text("the book")
    (site / "folder" / "page one.html").write_text("a page")
    (tmp_path / "secret").write_text("not for you")
    (site / "out").symlink_to(tmp_path / "secret")
    (site / "up").symlink_to(tmp_path)
    (site / "inside").symlink_to(site / "index.html")
    (site / "round").symlink_to(site / "round")
    with make_server(site) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_address[1]

        def ask(path, host=f"127.0.0.1:{port}", method="GET"):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection._validate_path = lambda url: None  # what no client would send is wanted here
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            if host is not None:
                connection.putheader("Host", host)
            connection.endheaders()
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

        yield ask
        server.shutdown()


def test_the_site_is_shown(ask):
    assert ask("/") == ask("/index.html") == ask("/index.html?x=1") == ask("/inside") == (200, "the book")
    assert ask("/folder/page%20one.html") == (200, "a page") and ask("/index.html", method="HEAD") == (200, "")


@pytest.mark.parametrize(
    "path",
    [
        "/folder/",
        "/out",
        "/up/secret",
        "/up/",
        "/round",
        "/../secret",
        "/%2e%2e/secret",
        "/..%2fsecret",
        "/a%00b",
        "/%00",
        "/" + 5000 * "x",
        "//secret",
        "/absent",
    ],
)
def test_nothing_else_is(ask, path, capfd):
    for method in ("GET", "HEAD"):
        status, body = ask(path, method=method)
        assert status == 404 and "not for you" not in body and "page one" not in body
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("name", ["localhost", "localhost:80", "127.0.0.1", "[::1]:8000", None])
def test_names_of_this_machine(ask, name):
    assert ask("/", host=name) == (200, "the book")


@pytest.mark.parametrize("name", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "10.0.0.1:80", ""])
def test_other_names_for_it(ask, name):
    assert ask("/", host=name)[0] == 403
