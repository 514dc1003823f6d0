"""The web server of `python -m play`: Python's http.server, JSON, and server-sent events.

It answers this machine only (--host: whoever knows the token), and of the web's pages only its own. The names
in a request are compared with those of known runs and checkpoints; no path is made of anything else.
"""

import contextlib
import hmac
import html
import ipaddress
import itertools
import json
import math
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from config import require
from play import completions, runs, views
from runtime import checkpoint
from runtime.folder import newest
from techniques.share import hashes, inlined

BODY = 2**20  # bytes of a request
ALIVE = 5.0  # seconds: an idle stream then sends a comment, which fails if nobody listens any more
KEPT = 2  # models in memory
GET = {"/v1/models": completions.models, **{f"/api/{name}": view for name, view in views.GET.items()}}
POST = {"/v1/completions": completions.complete, "/v1/chat/completions": completions.chat}
POST |= {f"/api/{name}": view for name, view in views.POST.items()}
LISTING = "<style>body{background:#fff;color:#111}span:target{background:#fe8}</style>"  # of the sources


class Refused(ValueError):
    """A ValueError that is answered with a status of its own, not 400."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class Desk:
    """What all requests share: where the runs are, the models read last, and one lock for computing."""

    def __init__(self, home: Path, chosen: str = "", token: str = ""):
        self.home, self.chosen, self.token = home, chosen, token
        self.lock = threading.RLock()
        self.asker = threading.local()  # .connection: of whoever this thread computes for
        self.ended = False
        self.kept: dict[tuple, tuple] = {}

    def folder(self, name: str) -> Path:
        """The folder of a known run. Refused (404) for any other name."""
        known = [path.name for path in self.home.iterdir() if os.path.isfile(path / "config.json")]
        if name not in known:
            raise Refused(404, f"there is no run {name!r:.60} here; /api/runs lists them")
        return self.home / name

    def model(self, name: str, file: str = "") -> tuple:
        """(model, tokenizer, checkpoint) of a run, read again when its file has changed. float32."""
        folder = self.folder(name)
        known = runs.checkpoints(folder)
        require(known != [], f"{name} has no checkpoint yet; wait for its first evaluation")
        file = file or known[0]
        require(file in known, f"{name} has no checkpoint {file!r:.60}; expected one of {', '.join(known)}")
        key = name, file, newest(folder / file).stat().st_mtime_ns
        with self.lock:
            if key not in self.kept:
                model, *rest = checkpoint.load_model(folder / file, "cpu")
                self.kept = dict(list(self.kept.items())[1 - KEPT :])  # the oldest goes
                self.kept[key] = (model.float(), *rest)
            return self.kept[key]

    def while_asked(self, steps: Iterator) -> Iterator:
        """The same steps, while whoever asked is there. ConnectionAbortedError if he has gone."""
        for step in steps:
            with selectors.DefaultSelector() as selector:
                selector.register(self.asker.connection, selectors.EVENT_READ)
                gone = selector.select(0) and not self.asker.connection.recv(1, socket.MSG_PEEK)
            if gone or self.ended:
                raise ConnectionAbortedError
            yield step

    def end(self) -> None:
        """Wait until nobody computes, and let nobody begin: a thread inside torch would abort the process
        when Python ends."""
        self.ended = True
        self.lock.acquire()

    def in_turns(self, steps: Iterator) -> Iterator:
        """The same steps, each with the lock held: others may compute between two tokens."""
        while True:
            with self.lock:
                step = next(steps, None)
            if step is None:
                return
            yield step


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "tinylm", ""
    timeout = 30  # seconds that a client may take to say what it wants

    def do_GET(self):
        self.answer(GET)

    def do_POST(self):
        self.answer(POST)

    def answer(self, routes: dict) -> None:
        """Check a request, do what it asks for, and send a page, JSON or a stream of events."""
        self.streaming = False
        self.close_connection |= routes is GET and "Content-Length" in self.headers  # what follows is unread
        try:
            url = urlsplit(self.path)
            query = dict(parse_qsl(url.query, max_num_fields=20))
            self.check(query)
            if routes is GET and url.path in self.server.pages:
                return self.send(200, "text/html", self.server.pages[url.path])
            if url.path not in routes:
                raise Refused(404, f"there is no {self.command} {url.path!r:.60} here")
            desk, request = self.server.desk, self.body() if routes is POST else query
            desk.asker.connection = self.connection
            with desk.lock if routes is POST else contextlib.nullcontext():
                result = routes[url.path](desk, request)
            if isinstance(result, dict):
                return self.send(200, "application/json", as_json(result))
            self.stream(result)
        except (ConnectionError, TimeoutError):
            self.close_connection = True  # whoever asked has gone
        except ValueError as error:
            self.fail(getattr(error, "status", 400), str(error))
        except FileNotFoundError:
            self.fail(404, "this run has been deleted, or moved")
        except Exception as error:
            print(f"play: {self.path!r:.80}: {type(error).__name__}: {error}", file=sys.stderr)
            self.fail(500, f"this failed ({type(error).__name__}); the terminal of the server says more")

    def check(self, query: dict) -> None:
        """Refused (403) for a request that is not from this machine's owner.

        A page of the web may have its name point to this machine (DNS rebinding): then Host has its name.
        Or it may send a form: then Origin has. With --host, the token tells who asks.
        """
        host, desk = self.headers.get("Host", ""), self.server.desk
        if not is_ours(urlsplit(f"//{host}").hostname or "", anywhere=desk.token != ""):
            raise Refused(403, f"the Host {host!r:.60} is not this server's; use the address it has printed")
        if self.headers.get("Origin", f"http://{host}") != f"http://{host}":
            raise Refused(403, "this request comes from another page")
        given = self.headers.get("Authorization", "").removeprefix("Bearer ") or query.get("token", "")
        if desk.token and not hmac.compare_digest(given.encode(), desk.token.encode()):
            raise Refused(403, "the token is missing or wrong; use the whole address that was printed")

    def body(self) -> dict:
        """The JSON of a request. Refused (413, 415) or ValueError for anything else."""
        length, *more = self.headers.get_all("Content-Length", [""])
        if not length.isdecimal() or more or "Transfer-Encoding" in self.headers:
            raise Refused(411, "Content-Length is missing or no number; send it")
        if int(length) > BODY:
            raise Refused(413, f"the request has more than {BODY:,} bytes; send a shorter text")
        content = self.rfile.read(int(length))
        if self.headers.get_content_type() != "application/json":
            raise Refused(415, "expected Content-Type: application/json")
        try:
            value = json.loads(content)
        except (ValueError, RecursionError):
            raise ValueError("the request is no JSON") from None
        require(isinstance(value, dict), "the request is no JSON object; expected {...}")
        return value

    def stream(self, events: Iterator[list]) -> None:
        """Send events as they come. The first one decides: an error before it is an ordinary one."""
        first = next(events, [])
        self.head(200, "text/event-stream")
        self.streaming, told = True, time.monotonic()
        try:
            for new in itertools.chain([first], events):
                for event, data in new:
                    name = f"event: {event}\n" if event else ""
                    self.wfile.write(f"{name}data: {as_json(data)}\n\n".encode())
                if not new and time.monotonic() > told + ALIVE:
                    self.wfile.write(b": still here\n\n")
                    told = time.monotonic()
            self.wfile.write(b"data: [DONE]\n\n")
        finally:
            events.close()  # whoever has gone away ends what was written for him

    def head(self, status: int, kind: str, length: int | None = None) -> None:
        """Send status and headers. Without a length the end of the connection is that of the answer."""
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        if length is None:
            self.close_connection = True
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(length))
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.end_headers()

    def send(self, status: int, kind: str, text: str) -> None:
        content = text.encode()
        self.head(status, kind, len(content))
        self.wfile.write(content)

    def fail(self, status: int, message: str) -> None:
        """Send an error of one line, as JSON; into a stream that has begun, as its last event."""
        message = " ".join(message.split())
        error = json.dumps({"error": {"message": message, "type": "invalid_request_error", "code": status}})
        self.close_connection = True  # what the request had more may be unread
        with contextlib.suppress(OSError):
            if self.streaming:
                self.wfile.write(f"data: {error}\n\n".encode())
            else:
                self.send(status, "application/json", error)

    def send_error(self, code, message=None, explain=None):
        """http.server's own refusals, such as a request line of 100,000 characters: in the same form."""
        self.streaming = False
        self.request_version = "HTTP/1.1"  # it may have been unreadable
        self.fail(code, message or "this is no HTTP request")

    def log_message(self, *args):
        """Print nothing for each request."""


class Server(ThreadingHTTPServer):
    """The server, and what it serves without computing."""

    request_queue_size = 64
    daemon_threads = True

    def __init__(self, address: tuple[str, int], desk: Desk):
        self.desk, self.pages = desk, pages()
        self.headers = headers(self.pages["/"])
        super().__init__(address, Handler)

    def handle_error(self, request, client_address):
        """Print nothing of a connection that broke."""


def is_ours(name: str, anywhere: bool) -> bool:
    """Whether a host name of a request means this machine: localhost, or a number of the loopback interface;
    anywhere: any number, or the machine's name. Of other names only their owner knows where they point."""
    if name == "localhost" or (anywhere and name == socket.gethostname().lower()):
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(name).is_loopback or anywhere
    return False


def as_json(value) -> str:
    """JSON with null where NaN or infinity stands, for which JSON has no name."""

    def finite(value):
        if isinstance(value, dict):
            return {key: finite(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [finite(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        return json.dumps(finite(value))


def pages() -> dict[str, str]:
    """{path: HTML}: the page as one file, and the sources that it links to, each line with an anchor."""
    found = {"/": inlined(Path(__file__).with_name("page.html"))}
    for name in dict.fromkeys(file for _, _, file, _ in views.FORMULAS.values()):
        lines = map(html.escape, views.lines_of(name))
        listing = "\n".join(f'<span id="L{n}">{n:4}  {line}</span>' for n, line in enumerate(lines, 1))
        found[f"/source/{name}"] = (
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{name}</title>'
            f"{LISTING}<main><pre>{listing}</pre></main></html>"
        )
    return found


def headers(page: str) -> dict[str, str]:
    """Headers of every answer: only the page's own script and styles run; nothing comes from elsewhere."""
    policy = f"default-src 'none'; connect-src 'self'; img-src data:; script-src {hashes(page, 'script')}; "
    policy += f"style-src {hashes(page + LISTING, 'style')}; "
    policy += "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    return {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",  # an address may have the token in it
        "Cache-Control": "no-store",
    }
