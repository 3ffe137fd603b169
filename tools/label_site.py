r"""Appendix to Chapter 6. The labelling site: one page, five answers to requests, no other files.

    GET  /  /agreement        the page, label.html; it decides by its address what to show
    GET  /settings            what people are asked, the same for all
    GET  /numbers             what `labelling stats` prints
    POST /next /answer /undo  JSON in, JSON out; each says who asks: {"labeller": name, ...}

Written to be left running among friends, so it is narrow. The page is read once, at the start; no
request names a file. Only this site's own pages may ask (Host and Origin are compared with the
names it answers to, so neither a page elsewhere nor a re-pointed name gets in). With --host 0.0.0.0
these are localhost, the address that the request came to, and --names. Outside this machine a token
is asked for as well, printed at the start and kept in a cookie that scripts cannot read. Texts
travel as JSON and enter the page as text, never as markup; should one slip through, the
Content-Security-Policy runs no script but the page's own, known by its hash.

    python -m tools.labelling serve --pairs runs/demo/pairs.jsonl --db runs/demo/labels.db \
                                    --host 192.168.1.5

Names are believed: whoever has the token can answer as anybody.

Before: label_store.py, who is asked what.    After: labelling.py, which starts it.
"""
import base64
import contextlib
import hashlib
import hmac
import html
import json
import re
import socket
import sqlite3
import sys
import traceback
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from runtime import Problem
from tools.label_store import Gone

PAGE = Path(__file__).with_name("label.html")
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
EVERY = ("0.0.0.0", "::")                # --host for: every address of this machine
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
    """What to show this person: a pair in the drawn order, without its writers; or a reason. Of a
    new name that differs from a known one by case or Unicode form only: {"known": that one}."""
    name = labeller_of(body, settings)
    if known := store.alike(name):
        return {"known": {"name": known, **store.progress(known)}}
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


def own_address(family):
    """The address under which this machine is seen from outside, None when it has no network.
    Nothing is sent: a UDP socket only asks the system from where it would send."""
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as line:
        line.connect(("2001:db8::1" if family == socket.AF_INET6 else "192.0.2.1", 9))
        return line.getsockname()[0]


def in_url(address):
    """An address as it stands in a URL; an IPv4 address that came over IPv6 as the former."""
    address = address.removeprefix("::ffff:")
    return f"[{address}]" if ":" in address else address


class Local(ThreadingHTTPServer):
    """A site of one page, for this machine or those near it: a thread for each connection.

    page: its text. pages: the paths that give it. gets: {path: function()}, posts: {path:
    function(JSON object)}, both for what is to become JSON. token: None on this machine alone.
    names: other host names under which people reach the site. about: begins a complaint of a disk.
    Raises: Problem when the address cannot be had.
    """
    daemon_threads, request_queue_size = True, 128

    def __init__(self, host, port, page, pages, gets, posts, token=None, names=(), about=""):
        self.page, self.pages = page, pages
        self.gets, self.posts, self.token, self.about = gets, posts, token, about
        self.policy = policy_of(self.page)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), Handler)
        except (OSError, OverflowError) as error:
            raise Problem(f"--host {host} --port {port}: cannot listen there ({error}): choose "
                          "another --port (0: any free one), or a --host of this machine") from None
        self.everywhere, name = host in EVERY, in_url(host)
        hosts = {name, *names, *(LOOPBACK if self.everywhere or name in LOOPBACK else ())}
        self.hosts = hosts | {f"{name}:{self.server_port}" for name in hosts}
        self.cookie = f"label_token_{self.server_port}"
        seen = own_address(self.address_family) if self.everywhere else None
        shown = ["localhost", *([in_url(seen)] if seen else [])] if self.everywhere else [name]
        self.urls = [f"http://{name}:{self.server_port}/" + (f"?token={token}" if token else "")
                     for name in shown]

    def server_bind(self):
        """As the parent's, without asking a name server who we are: that may take seconds."""
        super(ThreadingHTTPServer.__mro__[2], self).server_bind()
        self.server_name, self.server_port = self.server_address[:2]

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):   # they just left
            super().handle_error(request, client_address)


class Site(Local):
    """The labelling site. settings: what GET /settings tells. numbers: a function without
    arguments, for GET /numbers. token, names: see `Local`."""

    def __init__(self, host, port, store, settings, numbers, token=None, names=()):
        self.store = store
        posts = {path: partial(act, store, settings) for path, act in POSTS.items()}
        super().__init__(host, port, PAGE.read_text(encoding="utf-8"), ("/", "/agreement"),
                         {"/settings": lambda: settings, "/numbers": numbers}, posts, token, names,
                         f"{store.path}: ")


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
        self.refuse(int(code), message or "refused")

    def refuse(self, status, why):
        """Say why not: on a page to who opens an address, as JSON to a page's script."""
        if "text/html" not in (getattr(self, "headers", None) or {}).get("Accept", ""):
            return self.reply(status, {"error": why})
        style = re.search(r"<style>.*?</style>", self.server.page, re.DOTALL)[0]
        title = re.search(r"<title>(.*?)</title>", self.server.page)[1]
        back = f'<p><a href="/">Back to “{title}”</a></p>' if status == 404 else ""
        self.reply(status, f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{HTTPStatus(status).phrase}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">
{style}</head><body><main class="wrap"><section id="word"><h2>This does not work</h2>
<p>{html.escape(why[:1].upper() + why[1:])}.</p>
{back}</section></main></body></html>
""", "text/html")

    def do_GET(self):
        self.guarded(self.get)

    def do_POST(self):
        self.guarded(self.post)

    def guarded(self, act):
        """Check who asks from where, act, and turn every failure into one short answer."""
        try:
            host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
            if not self.known_host(host.lower()):
                raise Refused(403, "this site is not known by that name: open the address that it "
                                   "printed when it started, or start it with --names")
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
                    raise Refused(401, "open the whole address that `labelling serve` printed, "
                                       "with ?token= and what follows it")
            act(path, fresh)
        except Refused as refused:
            status, why = refused.args
            self.refuse(status, why)
        except Gone as gone:
            self.refuse(409, str(gone))
        except Problem as problem:
            self.refuse(400, str(problem))
        except (ConnectionError, TimeoutError):
            raise
        except sqlite3.Error as error:                   # the disk is full, most likely
            print(f"error: {self.server.about}{error}: nothing was kept", file=sys.stderr)
            self.refuse(503, f"nothing was kept: {error}")
        except Exception:
            traceback.print_exc()
            self.refuse(500, "the server failed; nothing was kept")

    def known_host(self, host):
        """Whether that is a name of this site. An address is safe from being pointed elsewhere."""
        here, port = in_url(self.connection.getsockname()[0]), self.server.server_port
        return host in self.server.hosts or (
            self.server.everywhere and host in (here, f"{here}:{port}"))

    def known(self, token):
        return hmac.compare_digest(token.encode(), self.server.token.encode())

    def token_sent(self):
        cookies = "; ".join(self.headers.get_all("Cookie", []))
        found = re.search(rf"(?:^|;\s*){self.server.cookie}=([\w-]+)", cookies)
        return found[1] if found else ""

    def get(self, path, fresh):
        """The page, or what it reads. fresh: headers to add, the cookie."""
        if path in self.server.pages:
            self.reply(200, self.server.page, "text/html", **fresh)
        elif path in self.server.gets:
            self.reply(200, self.server.gets[path]())
        else:
            raise Refused(404, "there is no such page")

    def post(self, path, fresh):
        """Read a JSON object, answer with one."""
        if path not in self.server.posts:
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
        self.reply(200, self.server.posts[path](body))
