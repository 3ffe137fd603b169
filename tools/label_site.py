r"""Appendix to Chapter 6. The labelling site: one page, five answers to requests, no other files.

    GET  /  /agreement        the page, label.html; it decides by its address what to show
    GET  /settings            what people are asked, the same for all
    GET  /numbers             what `labelling stats` prints
    POST /next /answer /undo  JSON in, JSON out; each says who asks: {"labeller": name, ...}

Written to be left running among friends, so it is narrow. The page is read once, at the start; no
request names a file. Only this site's own pages may ask (Host and Origin are compared with the
names it answers to, so neither a page elsewhere nor a re-pointed name gets in). Outside this
machine a token is asked for as well, printed at the start and kept in a cookie that scripts cannot
read. Texts travel as JSON and enter the page as text, never as markup; should one slip through, the
Content-Security-Policy runs no script but the page's own, known by its hash.

    python -m tools.labelling serve --pairs runs/demo/pairs.jsonl --db runs/demo/labels.db \
                                    --host 192.168.1.5

Names are believed: whoever has the token can answer as anybody.

Before: label_store.py, who is asked what.    After: labelling.py, which starts it.
"""
import base64
import hashlib
import hmac
import json
import re
import socket
import sqlite3
import sys
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from runtime import Problem
from tools.label_store import Gone

PAGE = Path(__file__).with_name("label.html")
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
BODY = 64 * 1024                         # bytes of a request, far more than a page can want
TEXT, NAME = 4000, 40                    # characters of a note or comment, of a name


class Refused(Exception):
    """A request that is not answered: HTTP status and one line."""


# ----------------------------------------------------------------------------- reading what is sent

def clean(text, limit=TEXT):
    """A text from outside. Raises: Refused when it is none, or too long."""
    if not isinstance(text, str) or len(text) > limit:
        raise Refused(400, f"a text of at most {limit} characters is expected")
    return text.encode("utf-8", "replace").decode().strip()        # half an emoji becomes "?"


def labeller_of(body, settings):
    """Who asks. Raises: Refused for no name, or one of invisible or control characters."""
    name = clean(settings["labeller"] or body.get("labeller", ""), NAME)
    if not name or not name.isprintable():
        raise Refused(400, f"a labeller needs a name of 1 to {NAME} visible characters")
    return name


def answer_of(body, settings):
    """(confidence, more) as `Store.answer` takes them. Raises: Refused."""
    confidence = body.get("confidence")
    if confidence is not None and not (type(confidence) is int and 1 <= confidence <= 9):
        raise Refused(400, "confidence is 1 to 9, or null to skip")
    more = {}
    for key in ("notes", "axes"):
        value = body.get(key)
        if value is not None and not (isinstance(value, list) and len(value) == 2):
            raise Refused(400, f"{key} are a list of two: A's and B's")
    if body.get("notes"):
        more["notes"] = [clean(note) for note in body["notes"]]
    if body.get("axes"):
        names = {axis["name"] for axis in settings["axes"]}
        for grades in body["axes"]:
            if not isinstance(grades, dict) or not names >= grades.keys() or not all(
                    type(g) is int and 1 <= g <= 7 for g in grades.values()):
                raise Refused(400, f"axes are grades of 1 to 7 for {', '.join(sorted(names))}")
        more["axes"] = body["axes"]
    comment = clean(body.get("comment") or "")
    return confidence, more | ({"comment": comment} if comment else {})


# -------------------------------------------------------------------------------------- the answers

def next_page(store, settings, body):
    """What to show this person: a pair in the drawn order, without its writers; or a reason."""
    name = labeller_of(body, settings)
    why = store.held(name)
    item = None if why else store.next(name)
    shown = {"progress": store.progress(name), "held": why, "item": None}
    if item:
        record = item["record"]
        texts = [s["text"].strip() for s in record["summaries"]]
        shown |= {"item": item["item"], "lesson": item["lesson"], "info": record["info"],
                  "texts": texts[::-1] if item["swapped"] else texts}
    return shown


def take_answer(store, settings, body):
    """Keep an answer and give the next page; after a lesson first say what the researcher said.

    The answer and the lease of the next pair are one transaction, so they cost one wait for the
    disk, and the page cannot appear before the answer is there.
    """
    name, item = labeller_of(body, settings), body.get("item")
    if type(item) is not int or abs(item) >= 2 ** 63:
        raise Refused(400, "item is a whole number")
    confidence, more = answer_of(body, settings)
    with store.transaction():
        said = store.answer(item, name, confidence, more)
        return {"researcher": said, "page": None if said else next_page(store, settings, body)}


def take_back(store, settings, body):
    """Open this person's last answer again; the page then asks for it with /next."""
    return {"before": store.undo(labeller_of(body, settings))}


POSTS = {"/next": next_page, "/answer": take_answer, "/undo": take_back}


def policy_of(page):
    """The Content-Security-Policy under which the page's own script and style run, and no other."""
    def hashes(tag):
        parts = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(p.encode()).digest()).decode()}'"
                        for p in parts)
    return (f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; "
            "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
            "frame-ancestors 'none'")


class Site(ThreadingHTTPServer):
    """The server: a thread for each connection.

    settings: what GET /settings tells. numbers: a function without arguments, for GET /numbers.
    token: None on this machine alone. names: other host names under which people reach the site.
    Raises: Problem when the address cannot be had.
    """
    daemon_threads, request_queue_size = True, 128

    def __init__(self, host, port, store, settings, numbers, token=None, names=()):
        self.store, self.settings, self.numbers, self.token = store, settings, numbers, token
        self.page = PAGE.read_text(encoding="utf-8")
        self.policy = policy_of(self.page)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), Handler)
        except (OSError, OverflowError) as error:
            raise Problem(f"--host {host} --port {port}: cannot listen there ({error}): choose "
                          "another --port (0: any free one), or a --host of this machine") from None
        self.name = f"[{host}]" if ":" in host else host
        hosts = {self.name, *names, *(LOOPBACK if self.name in LOOPBACK else ())}
        self.hosts = hosts | {f"{name}:{self.server_port}" for name in hosts}
        self.cookie = f"label_token_{self.server_port}"
        self.url = f"http://{self.name}:{self.server_port}/" + (f"?token={token}" if token else "")

    def server_bind(self):
        """As the parent's, without asking a name server who we are: that may take seconds."""
        super(ThreadingHTTPServer.__mro__[2], self).server_bind()
        self.server_name, self.server_port = self.server_address[:2]

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):   # they just left
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """One connection; kept open for more requests, closed after a minute of silence."""
    protocol_version, timeout = "HTTP/1.1", 60
    wbufsize, disable_nagle_algorithm = -1, True       # head and body leave in one packet, at once
    server_version, sys_version = "label", ""

    def log_message(self, *args):
        """The terminal stays readable; what matters is in the database."""

    def reply(self, status, body, kind="application/json", **headers):
        """Send one whole answer; body: text, or what is to become JSON."""
        body = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        for name, value in {"Content-Type": f"{kind}; charset=utf-8", "Content-Length": len(body),
                            "Content-Security-Policy": self.server.policy,
                            "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
                            "Cache-Control": "no-store", **headers}.items():
            self.send_header(name, str(value))
        if status >= 400:                # the body may not have been read: start afresh
            self.close_connection = True
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_error(self, code, message=None, explain=None):
        """What http.server itself refuses (a method, a broken request line) is answered so, too."""
        self.reply(int(code), {"error": message or "refused"})

    def do_GET(self):
        self.guarded(self.get)

    def do_POST(self):
        self.guarded(self.post)

    def guarded(self, act):
        """Check who asks from where, act, and turn every failure into one short answer."""
        try:
            host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
            if host.lower() not in self.server.hosts:
                raise Refused(403, "this site is not known by that name (serve --names)")
            if origin is not None and re.sub("^https?://", "", origin.lower()) != host.lower():
                raise Refused(403, "another site's page may not ask")
            path, _, query = self.path.partition("?")
            fresh = {}
            if self.server.token:
                typed = re.search(r"(?:^|&)token=([\w-]+)", query)
                if typed and self.command == "GET" and self.known(typed[1]):
                    fresh["Set-Cookie"] = (f"{self.server.cookie}={self.server.token}; Path=/; "
                                           "HttpOnly; SameSite=Strict; Max-Age=2592000")
                elif not self.known(self.token_sent()):
                    raise Refused(401, "open the address that `labelling serve` printed: it ends "
                                       "with ?token=...")
            act(path, fresh)
        except Refused as refused:
            status, why = refused.args
            self.reply(status, {"error": why})
        except Gone as gone:
            self.reply(409, {"error": str(gone)})
        except (ConnectionError, TimeoutError):
            raise
        except sqlite3.Error as error:                   # the disk is full, most likely
            print(f"error: {self.server.store.path}: {error}: nothing was kept", file=sys.stderr)
            self.reply(503, {"error": f"nothing was kept: {error}"})
        except Exception:
            traceback.print_exc()
            self.reply(500, {"error": "the server failed; nothing was kept"})

    def known(self, token):
        return hmac.compare_digest(token.encode(), self.server.token.encode())

    def token_sent(self):
        cookies = "; ".join(self.headers.get_all("Cookie", []))
        found = re.search(rf"(?:^|;\s*){self.server.cookie}=([\w-]+)", cookies)
        return found[1] if found else ""

    def get(self, path, fresh):
        """The page, or one of the two things it reads. fresh: headers to add, the cookie."""
        if path in ("/", "/agreement"):
            self.reply(200, self.server.page, "text/html", **fresh)
        elif path == "/settings":
            self.reply(200, self.server.settings)
        elif path == "/numbers":
            self.reply(200, self.server.numbers())
        else:
            raise Refused(404, "there is no such page")

    def post(self, path, fresh):
        """Read a JSON object, answer with one."""
        if path not in POSTS:
            raise Refused(404, "there is no such page")
        if self.headers.get_content_type() != "application/json":
            raise Refused(415, "JSON is expected")       # a form of another site cannot send this
        length = self.headers.get("Content-Length", "")
        if "Transfer-Encoding" in self.headers or not re.fullmatch(r"[0-9]{1,12}", length):
            raise Refused(411, "say the length of the body")
        if int(length) > BODY:
            raise Refused(413, f"{length} bytes are too many: {BODY} at most")
        try:
            body = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            raise Refused(400, "the body is not JSON") from None
        if not isinstance(body, dict):
            raise Refused(400, "the body is not a JSON object")
        self.reply(200, POSTS[path](self.server.store, self.server.settings, body))
