"""techniques/exchange/download.py: from a server of this computer that cuts, lies, or knows no ranges."""

import hashlib
import http.server
import json
import re
import threading

import pytest

from techniques.exchange import download

CONTENT = bytes(range(256)) * 12_000  # 3 MB
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.BaseHTTPRequestHandler):
    """Serves server.files (an int: that error; a text: it moved there); `cuts` answers end after 1 MB."""

    def do_GET(self):
        server, start = self.server, 0
        server.asked.append((self.path, self.headers.get("Range")))
        content = server.files.get(self.path)
        if isinstance(content, str):
            self.send_response(302)
            self.send_header("Location", content)
            self.end_headers()
            return
        if content is None or isinstance(content, int):
            self.send_error(content or 404)
            return
        if server.ranges and (wanted := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))):
            start = int(wanted[1])
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        body = content[start:]
        if server.cuts:
            server.cuts -= 1
            body = body[: 2**20]
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    """A server with one file; its address stands in for Hugging Face's."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.files, server.cuts, server.ranges, server.asked = {"/f.bin": CONTENT}, 0, True, []
    server.handle_error = lambda *arguments: None  # a client that refuses an answer hangs up
    server.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(download, "HUB", server.url)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def listed(server, files: dict[str, bytes], **lies) -> None:
    """Make the server a hub with the model a/b."""
    siblings = []
    for name, content in files.items():
        large = (
            {"lfs": {"sha256": hashlib.sha256(content).hexdigest()}} if name.endswith(".safetensors") else {}
        )
        siblings.append({"rfilename": name, "size": len(content), **large})
        server.files[f"/a/b/resolve/{'c' * 40}/{name}"] = content
    answer = {"sha": "c" * 40, "siblings": siblings, **lies}
    server.files["/api/models/a/b?blobs=true"] = json.dumps(answer).encode()


def test_a_cut_connection_goes_on_where_it_stopped(server, tmp_path, capfd):
    server.cuts = 2
    path = download.fetch(f"{server.url}/f.bin", tmp_path / "f.bin", len(CONTENT), SHA256)
    assert path.read_bytes() == CONTENT and [p.name for p in tmp_path.iterdir()] == ["f.bin"]
    assert [asked for _, asked in server.asked] == [None, "bytes=1048576-", "bytes=2097152-"]
    lines = capfd.readouterr().err
    assert "cut off after 1,048,576 of 3,072,000 bytes; going on" in lines and "3.1 of 3.1 MB" in lines
    server.asked.clear()
    download.fetch(f"{server.url}/f.bin", path, len(CONTENT), SHA256)
    assert not server.asked and "is there" in capfd.readouterr().err


def test_the_next_command_goes_on_with_what_the_last_one_got(server, tmp_path):
    (tmp_path / "f.bin.part").write_bytes(CONTENT[:1000])
    download.fetch(f"{server.url}/f.bin", tmp_path / "f.bin", len(CONTENT), SHA256)
    assert server.asked == [("/f.bin", "bytes=1000-")] and (tmp_path / "f.bin").read_bytes() == CONTENT
    for done in (len(CONTENT), len(CONTENT) + 5):  # complete but for its name; longer than the file
        (tmp_path / "g.bin.part").write_bytes((CONTENT + b"....,")[:done])
        download.fetch(f"{server.url}/f.bin", tmp_path / "g.bin", len(CONTENT), SHA256)
        assert (tmp_path / "g.bin").read_bytes() == CONTENT
        (tmp_path / "g.bin").unlink()


def test_a_server_without_ranges_begins_anew(server, tmp_path):
    server.ranges = False
    (tmp_path / "f.bin.part").write_bytes(b"x" * 1000)
    download.fetch(f"{server.url}/f.bin", tmp_path / "f.bin", len(CONTENT), SHA256)
    assert (tmp_path / "f.bin").read_bytes() == CONTENT


def test_without_a_sha256_two_versions_are_not_mixed(server, tmp_path):
    (tmp_path / "f.bin.part").write_bytes(b"an older version")
    url = f"http://localhost:{server.server_port}/f.bin?x=1"
    server.files["/f.bin?x=1"] = CONTENT
    assert download.download(url, tmp_path) == tmp_path / "f.bin"
    assert (tmp_path / "f.bin").read_bytes() == CONTENT and server.asked == [("/f.bin?x=1", None)]


def test_another_file_is_refused_and_not_kept(server, tmp_path):
    wrong = "0" * 64
    for size, sha256, words in (
        (len(CONTENT), wrong, f"sha256 {SHA256}; expected 3,072,000, {wrong}; removed, try again"),
        (len(CONTENT) + 1, SHA256, "has 3,072,000 bytes; expected 3,072,001"),
        (len(CONTENT) - 1, SHA256, "has 3,072,000 bytes; expected 3,071,999"),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            download.fetch(f"{server.url}/f.bin", tmp_path / "f.bin", size, sha256)
        assert "\n" not in str(caught.value) and not any(tmp_path.iterdir())
    (tmp_path / "f.bin.part").write_bytes(
        b"x" * 1000
    )  # of another version: noticed at the end, gone afterwards
    with pytest.raises(ValueError, match="is another file"):
        download.fetch(f"{server.url}/f.bin", tmp_path / "f.bin", len(CONTENT), SHA256)
    assert not any(tmp_path.iterdir())
    download.fetch(f"{server.url}/f.bin", tmp_path / "f.bin", len(CONTENT), SHA256)


def test_a_repository_becomes_a_folder(server, tmp_path, capfd):
    small = {"config.json": b"{}", "tokenizer.json": b"[]", "README.md": b"#", "pytorch_model.bin": b"pickle"}
    large = {"model.safetensors": CONTENT, "onnx/model.safetensors": b"x", "consolidated.safetensors": b"y"}
    listed(server, {**large, **small})
    assert download.download("a/b", tmp_path / "to") == tmp_path / "to"
    assert {p.name for p in (tmp_path / "to").iterdir()} == {
        "config.json",
        "tokenizer.json",
        "model.safetensors",
    }
    assert (tmp_path / "to" / "model.safetensors").read_bytes() == CONTENT
    assert [path.rpartition("/")[2] for path, _ in server.asked[1:]] == [
        "config.json",
        "tokenizer.json",
        "model.safetensors",
    ]
    one = download.download(
        f"{server.url}/a/b/blob/main/onnx/model.safetensors?download=true", tmp_path / "one"
    )
    assert (
        one.read_bytes() == b"x"
        and download.download(f"{server.url}/a/b", tmp_path / "to") == tmp_path / "to"
    )


def test_what_cannot_be_downloaded_is_one_line(server, tmp_path, monkeypatch):
    listed(server, {"model.Q8_0.gguf": b"x", "pytorch_model.bin": b"y"})
    server.files |= {"/secret.bin": 403, "/api/models/gated/one?blobs=true": 401, "/busy.bin": 503}
    server.files |= {"/api/models/odd/list?blobs=true": b'{"sha": "c", "siblings": [{"size": 1}]}'}
    server.files |= {
        "/api/models/odd/size?blobs=true": b'{"sha": "c", "siblings": [{"rfilename": "a", "size": -1}]}'
    }
    server.files |= {"/api/models/odd/page?blobs=true": b"<html>"}
    elsewhere = server.url.replace("127.0.0.1", "localhost")
    for name, words in (
        ("a/b", "has no model.safetensors; it has model.Q8_0.gguf, pytorch_model.bin; for one file"),
        (f"{server.url}/a/b/resolve/main/no.gguf", "has no no.gguf; it has model.Q8_0.gguf"),
        ("no/such", r"refused \(404\): it does not exist, or needs a login; check the name"),
        ("gated/one", r"refused \(401\): it does not exist, or needs a login"),
        (f"{elsewhere}/secret.bin", r"refused \(403\): it needs a login"),
        (
            f"{elsewhere}/busy.bin",
            "busy.bin could not be downloaded.*the server is busy, 503; repeat the command",
        ),
        ("odd/list", "answered with no list of files"),
        ("odd/size", "answered with no list of files"),
        ("odd/page", "answered with no list of files"),
        ("../etc", "is no model of Hugging Face's; expected OWNER/NAME"),
        ("a/b/c", "is no model of Hugging Face's"),
        ("http://example.com/f.bin", "is not https"),
        ("ftp://example.com/f.bin", "is not https"),
        ("https://example.com/", "ends in no file name"),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            download.download(name, tmp_path / "to")
        assert "\n" not in str(caught.value)
    assert not any((tmp_path / "to").iterdir())
    monkeypatch.setattr(download, "HUB", "https://192.0.2.1")  # the fixture no_network makes it unreachable
    with pytest.raises(
        ValueError, match="a/b could not be downloaded: network is blocked .*; repeat the command"
    ):
        download.download("a/b", tmp_path / "to")


def test_nothing_is_followed_out_of_https(server, tmp_path, monkeypatch):
    server.files |= {"/moved": "/f.bin", "/file": "file:///dev/null"}
    assert download.fetch(f"{server.url}/moved", tmp_path / "a").read_bytes() == CONTENT
    monkeypatch.setattr(download, "is_safe", lambda url: not url.endswith("f.bin"))
    for path, words in (("moved", "which is not https; tinylm does not follow"), ("file", "refused")):
        with pytest.raises(ValueError, match=words):
            download.fetch(f"{server.url}/{path}", tmp_path / "b")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
