"""Fetching over a bad line, from a server on this machine; the formats of what is fetched."""
import base64
import gzip
import hashlib
import io
import json
import os
import shutil
import signal
import tarfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import ROOT

import data
import toy
from data import encode_query, read_comparisons, read_posts
from evaluate import LEAD_3
from runtime import Problem
from tools import convert, download
from tools.download import article_of, fetch

FIXTURES = ROOT.parent / "shared" / "fixtures"
SAVED = ROOT.parent / "shared" / "tiktoken_cache"
BODY = bytes(range(256)) * 2000                                      # 512,000 bytes
WEB_PAGE = b"<!DOCTYPE html><html>Please log in</html>"


class Server(ThreadingHTTPServer):
    """A server of `files`; each request takes the next of `faults`, a dict, while there are any."""
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.faults, self.asked, self.sent, self.pace = {}, [], [], 0, 0.0
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        server, asked = self.server, self.headers.get("Range")
        server.asked.append((self.path, asked))
        fault = server.faults.pop(0) if server.faults else {}
        body = server.files.get(self.path)
        if body is None or "status" in fault:
            self.send_response(fault.get("status", 404))
            for item in fault.get("headers", {}).items():
                self.send_header(*item)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        body = fault.get("body", body)
        longer = fault.get("longer", 0)
        tag, first = f'"{hashlib.md5(body).hexdigest()}"', 0
        if asked and not fault.get("no_ranges") and self.headers.get("If-Range", tag) == tag:
            first = int(asked.removeprefix("bytes=").removesuffix("-"))
            if first >= len(body):
                self.send_response(416)
                self.send_header("Content-Length", "0")
                return self.end_headers()
            self.send_response(206)
            start = first + fault.get("shift", 0)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body) + longer}")
        else:
            self.send_response(200)
        if fault.get("tag", True):
            self.send_header("ETag", tag)
        for item in fault.get("headers", {}).items():
            self.send_header(*item)
        self.send_header("Content-Length", str(len(body) - first + longer))
        self.end_headers()
        part = body[first:first + fault["drop"]] if "drop" in fault else body[first:]
        for i in range(0, len(part), 1 << 14):
            try:
                self.wfile.write(part[i:i + (1 << 14)])
            except OSError:
                break
            server.sent += len(part[i:i + (1 << 14)])
            time.sleep(server.pace)
        self.close_connection = True


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download, "WAITS", (0, 0, 0))
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    server.files["/f"] = BODY
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def problem(*args, **options):
    with pytest.raises(Problem) as caught:
        fetch(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def sha(content):
    return hashlib.sha256(content).hexdigest()


def md5(content):
    return {"x-ms-blob-content-md5": base64.b64encode(hashlib.md5(content).digest()).decode()}


# -------------------------------------------------------------------------------------- the bad line

def test_a_file_arrives_with_its_checksum_and_is_not_fetched_again(server, tmp_path):
    for _ in range(2):
        fetch(server.url + "/f", tmp_path / "a" / "f")
    assert (tmp_path / "a" / "f").read_bytes() == BODY and len(server.asked) == 1
    assert (tmp_path / "a" / "SHA256SUMS").read_text() == f"{sha(BODY)}  f\n"
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["SHA256SUMS", "f"]


def test_a_line_that_drops_again_and_again_costs_only_what_was_lost(server, tmp_path):
    server.faults = [{"drop": 50_000} for _ in range(9)]
    fetch(server.url + "/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == BODY
    assert server.sent == len(BODY) + 9 and len(server.asked) == 10      # a byte again each time
    assert server.asked[1] == ("/f", "bytes=49999-")


def test_busy_servers_are_asked_again_and_waited_for(server, tmp_path, monkeypatch):
    waited = []
    monkeypatch.setattr(download.time, "sleep", waited.append)
    monkeypatch.setattr(download, "WAITS", (1, 2, 4))
    server.faults = [{"status": 503}, {"status": 429, "headers": {"Retry-After": "7"}},
                     {"status": 500}]
    fetch(server.url + "/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == BODY and [w for w in waited if w] == [1, 7, 4]
    server.faults = [{"status": 503}] * 9
    told = problem(server.url + "/f", tmp_path / "g")
    assert "503" in told and len(server.asked) == 8


def test_a_missing_file_is_not_asked_for_twice_and_the_way_by_hand_is_told(server, tmp_path):
    told = problem(server.url + "/none", tmp_path / "none.jsonl")
    assert f"{server.url}/none: the server says 404" in told and len(server.asked) == 1
    assert f"put it at {tmp_path / 'none.jsonl'}" in told


def test_all_that_does_not_come_is_listed_with_its_place(server, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(download, "WAITS", ())
    tldr(server)
    del server.files["/datasets/tldr_3_filtered/valid.jsonl"]
    with pytest.raises(Problem, match="valid.jsonl: the server says 404"):
        download.main(["tldr", "--base-url", server.url, "--out", str(tmp_path)])
    listed = capsys.readouterr().out.splitlines()
    assert listed == [f"{tmp_path}: 2 files are missing. What you put there by hand counts:"] + [
        f"  {server.url}/datasets/tldr_3_filtered/{s}.jsonl -> {tmp_path}/{s}.jsonl"
        for s in ("valid", "test")]
    with pytest.raises(Problem, match="refused"):
        download.main(["comparisons", "--base-url", "http://127.0.0.1:9", "--out", str(tmp_path / "c")])
    listed = capsys.readouterr().out.splitlines()
    assert len(listed) == 1 + 23 and listed[-1].endswith(f"-> {tmp_path}/c/raw/edit_b2_eval_test.json")
    with pytest.raises(Problem, match="refused"):
        download.main(["sup4", "--base-url", "http://127.0.0.1:9", "--out", str(tmp_path / "m")])
    assert capsys.readouterr().out.splitlines()[1:] == [
        f"  http://127.0.0.1:9/models/sup4/info.json -> {tmp_path}/m/info.json"]


def test_no_server_at_all_is_a_problem(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "WAITS", (0,))
    told = problem("http://127.0.0.1:9/f", tmp_path / "f")
    assert "refused" in told and "Fetch it by hand" in told
    assert "not an address" in problem("nonsense", tmp_path / "f")


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/octet-stream"])
def test_a_web_page_instead_of_the_file_is_refused(server, tmp_path, kind):
    server.files["/page"] = WEB_PAGE
    server.faults = [{"headers": {"Content-Type": kind}}]
    assert "web page" in problem(server.url + "/page", tmp_path / "train.jsonl")
    assert not list(tmp_path.glob("train.jsonl*"))


def test_a_wrong_size_is_a_problem(server, tmp_path):
    server.faults = [{"longer": 5} for _ in range(9)]         # promises more than it has
    assert f"ended after 512,000 of {len(BODY) + 5:,} bytes" in problem(
        server.url + "/f", tmp_path / "f")
    assert not (tmp_path / "f").exists()
    server.faults = [{"longer": -5, "headers": md5(BODY)} for _ in range(2)]      # and less
    assert "has not the md5" in problem(server.url + "/f", tmp_path / "g")


@pytest.mark.parametrize("stated", ["published", "md5", "Content-MD5", "X-Linked-ETag"])
def test_a_wrong_checksum_is_tried_once_more_and_then_refused(server, tmp_path, stated):
    headers = {"published": {}, "md5": md5(BODY), "X-Linked-ETag": {stated: f'"{sha(BODY)}"'},
               "Content-MD5": {stated: md5(BODY)["x-ms-blob-content-md5"]}}[stated]
    published = {"sha256": sha(BODY)} if stated == "published" else {}
    bad = {"body": BODY[:-1] + b"?", "headers": headers}
    server.faults = [bad, {"headers": headers}]
    fetch(server.url + "/f", tmp_path / "f", **published)
    assert (tmp_path / "f").read_bytes() == BODY
    server.faults = [bad] * 2
    told = problem(server.url + "/f", tmp_path / "g", **published)
    assert "what came has not the" in told and not list(tmp_path.glob("g*"))


def test_the_checksum_that_hugging_face_states_on_the_way_is_noticed(server, tmp_path):
    moved = {"status": 302, "headers": {"Location": "/f", "X-Linked-ETag": f'"{sha(b"other")}"'}}
    server.faults = [moved, {}, moved, {}]
    assert "has not the sha256" in problem(server.url + "/moved", tmp_path / "f")


def test_a_server_without_ranges_starts_over(server, tmp_path):
    server.faults = [{"drop": 100_000}, {"no_ranges": True}]
    fetch(server.url + "/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == BODY and len(server.asked) == 2


def test_pieces_of_two_versions_are_never_joined(server, tmp_path):
    server.faults = [{"drop": 100_000, "body": BODY[::-1]}]
    fetch(server.url + "/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == BODY


def test_a_range_from_elsewhere_is_not_written(server, tmp_path):
    server.faults = [{"drop": 100_000}, {"shift": 7}]
    fetch(server.url + "/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == BODY


@pytest.mark.parametrize("left", [BODY, BODY + b"more", BODY[:1], b""])
def test_whatever_an_earlier_try_left_the_file_is_right(server, tmp_path, left):
    (tmp_path / "f.part").write_bytes(left)
    fetch(server.url + "/f", tmp_path / "f", sha256=sha(BODY))
    assert (tmp_path / "f").read_bytes() == BODY and not (tmp_path / "f.part").exists()


def test_a_file_put_there_by_hand_is_taken_and_remembered(tmp_path):
    (tmp_path / "f").write_bytes(BODY)
    fetch("http://127.0.0.1:9/f", tmp_path / "f")
    assert (tmp_path / "SHA256SUMS").read_text() == f"{sha(BODY)}  f\n"
    (tmp_path / "f").write_bytes(BODY + b"?")
    assert "is not the file" in problem("http://127.0.0.1:9/f", tmp_path / "f")
    (tmp_path / "g").write_bytes(BODY)
    assert "is not the file" in problem("http://127.0.0.1:9/g", tmp_path / "g", sha256=sha(b""))


def test_a_folder_that_cannot_be_made_is_a_problem(tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot be made" in problem("http://127.0.0.1:9/f", tmp_path / "file" / "f")


def posts_file(n, first=0):
    return "".join(json.dumps({"id": f"t3_{i}", "subreddit": "tifu", "title": "é😀", "post": "x " * 50,
                               "summary": "no space before"}) + "\n"
                   for i in range(first, first + n)).encode()


def tldr(server, sizes=(60, 20, 20)):
    first = 0
    for name, n in zip(download.SPLITS, sizes, strict=True):
        server.files[f"/datasets/tldr_3_filtered/{name}.jsonl"] = posts_file(n, first)
        first += n


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_download_killed_three_times_and_started_again_ends_with_the_right_files(
        server, tmp_path, capsys):
    tldr(server, (6000, 20, 20))                                          # 1.1 MB
    server.pace, whole = 0.1, server.files["/datasets/tldr_3_filtered/train.jsonl"]
    line = ["tldr", "--base-url", server.url, "--out", str(tmp_path)]
    part, had = tmp_path / "train.jsonl.part", 0
    for _ in range(3):
        if (child := os.fork()) == 0:                     # quicker than importing torch each time
            try:
                download.main(line)
            finally:
                os._exit(1)
        while download.size_of(part) <= had:
            time.sleep(0.01)
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        assert had < download.size_of(part) < len(whole)
        had = download.size_of(part)
    server.pace = 0
    download.main(line)
    assert "complete. Next: python -m tools.download describe" in capsys.readouterr().out
    assert (tmp_path / "train.jsonl").read_bytes() == whole
    assert len(read_posts(tmp_path, "valid")) == 20
    assert server.asked[-3][1] == f"bytes={had - 1}-"


# -------------------------------------------------------------------------- what becomes of the files

REDDIT = {"id": "t3_a", "subreddit": "cats", "title": "My cat", "post": "It left.", "site": None,
          "article": None}
NEWS = {"id": "n", "site": "cnn", "title": None, "article": "A cat.\n\nIt left.", "post": None}


def compared(info, **changes):
    """A released comparison, as mirrors have it: every field is there, and null."""
    return {"info": info, "summaries": [{"text": " Größe 😀.", "policy": "ref", "note": None},
                                        {"text": "No space.", "policy": "sup4_t0.7", "note": "n"}],
            "choice": 1, "worker": "w", "batch": "batch9", "split": "valid1",
            "extra": {"confidence": 8}} | changes


def lines(*records):
    return "".join(json.dumps(r) + "\n" for r in records).encode()


def test_comparisons_are_sorted_into_the_papers_and_the_later_ones(server, tmp_path, capsys):
    for names in download.GROUPS.values():
        for name in names:
            info = NEWS if "cnndm" in name else REDDIT | {"id": name}
            server.files[f"/dataset/comparisons/{name}.json"] = lines(
                compared(info, split="train"), compared(info, extra={"confidence": None}),
                compared(info, extra=None, batch=name, split="valid2"))
    equal = compared(REDDIT, summaries=[{"text": " a"}, {"text": "a"}])
    server.files["/dataset/comparisons/batch3.json"] += lines(equal, equal)
    array = b"[\n" + b",\n".join(lines(compared(REDDIT), compared(REDDIT)).splitlines()) + b"\n]"
    server.files["/dataset/comparisons/batch4.json"] = array        # a mirror's way
    download.main(["comparisons", "--base-url", server.url, "--out", str(tmp_path)])
    told = capsys.readouterr().out
    assert "comparisons.jsonl: 23 comparisons (the paper: 64,832)" in told
    assert "left out 2: field 'summaries' holds one text twice" in told
    assert len(read_comparisons(tmp_path / "comparisons.jsonl", "train")) == 7
    kept = read_comparisons(tmp_path / "comparisons.jsonl")
    assert kept[0]["extra"] == {"confidence": 8} and kept[0]["summaries"][0]["text"] == " Größe 😀."
    assert set(kept[0]["info"]) == set(data.POST)
    later = read_comparisons(tmp_path / "later.jsonl", "valid2")
    assert {r["batch"] for r in later} == {f"batch{i}" for i in (*range(11, 21), 22)}
    news = read_comparisons(tmp_path / "cnndm.jsonl")
    assert len(news) == 9 and news[0]["info"]["title"] == "" and "post" not in news[0]["info"]
    assert len(read_comparisons(tmp_path / "raw" / "batch5.json")) == 3     # nulls and all
    download.main(["describe", str(tmp_path)])
    told = capsys.readouterr().out
    assert "23 comparisons; the first was preferred in 0.0%" in told and "ref - sup4_t0.7 23" in told


@pytest.mark.parametrize("extra", [{"confidence": 10}, {"confidence": "8"}, [8]])
def test_a_confidence_beyond_nine_points_is_named_by_file_and_line(tmp_path, extra):
    path = tmp_path / "c.jsonl"
    path.write_bytes(lines(compared(REDDIT), compared(REDDIT, extra=extra)))
    with pytest.raises(Problem, match="c.jsonl, line 2: field 'extra"):
        download.main(["describe", str(tmp_path)])


def test_grades_are_read_with_missing_axes_and_described(server, tmp_path, capsys):
    record = {"info": REDDIT, "split": "test", "worker": "w", "batch": "b", "summary": {
        "text": " t", "policy": "sup4", "note": None,
        "axes": {"overall": 7, "accuracy": None, "compatible": True}}}
    for name in download.AXIS:
        server.files[f"/dataset/axis_evals/{name}.json"] = lines(record)
    download.main(["axis", "--base-url", server.url, "--out", str(tmp_path)])
    download.main(["describe", str(tmp_path)])
    assert "sup4: overall 7.00, compatible 1.00 (5)" in capsys.readouterr().out
    for axes in ({"overall": 8}, {"overall": "7"}, None):
        (tmp_path / "bad.json").write_bytes(lines(record, record | {"summary": {"axes": axes}}))
        with pytest.raises(Problem, match="bad.json, line 2"):
            download.read_axes(tmp_path / "bad.json")


def test_prompts_come_without_their_unfiltered_summaries(server, tmp_path):
    for name in download.SPLITS:
        server.files[f"/datasets/tldr_3_filtered_queries/{name}.jsonl"] = posts_file(3)
    download.main(["queries", "--base-url", server.url + "/", "--out", str(tmp_path)])
    posts = read_posts(tmp_path, "train", need_summary=False)
    assert len(posts) == 3 and set(posts[0]) == set(data.POST)
    with pytest.raises(Problem, match="'summary' is missing"):
        read_posts(tmp_path, "train")


STORY = """(CNN) -- A cat left London.

"It was sad,"\xa0said its owner\u2019s mother.

@highlight

NEW: The cat left

@highlight

Owner's mother: 'It was sad'

@highlight

READ: More cats
"""


def test_a_story_becomes_an_article_and_a_summary():
    article, summary = article_of(STORY)
    assert article == 'A cat left London.\n\n"It was sad," said its owner\'s mother.'
    assert summary == "The cat left. Owner's mother: 'It was sad'"


def test_news_come_in_both_of_the_papers_formats(server, tmp_path, tokenizer, capsys):
    urls = {s: [f"http://cnn.com/{s}{i}" for i in range(3)] for s in ("train", "val", "test")}
    names = {hashlib.sha1(u.encode()).hexdigest(): u for some in urls.values() for u in some}
    for split, some in urls.items():
        server.files[f"/datasets/cnndm/url_lists/all_{split}.txt"] = "\n".join(some).encode()
    server.files["/datasets/cnndm/titles.json"] = json.dumps(
        dict.fromkeys(names, "Cats \ud83d")).encode()                 # half an emoji
    for site, some in (("cnn", list(names)[:4]), ("dailymail", [*list(names)[4:8], "unlisted"])):
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            for i, name in enumerate(some):
                text = (STORY if i else "no highlight").encode()
                member = tarfile.TarInfo(f"{site}/stories/{name}.story")
                member.size = len(text)
                archive.addfile(member, io.BytesIO(text))
        server.files[f"/{download.STORIES}/{site}_stories.tgz"] = packed.getvalue()
    download.main(["cnndm", "--base-url", server.url, "--out", str(tmp_path)])
    assert "2 articles without text or highlights are left out; 1 of the lists'" in \
        capsys.readouterr().out
    kinds = {kind: [r for s in download.SPLITS for r in read_posts(tmp_path / kind, s)]
             for kind in ("transfer", "supervised")}
    assert [len(k) for k in kinds.values()] == [6, 6] and kinds["transfer"][-1]["site"] == "dailymail"
    assert kinds["transfer"][0]["title"] == "Cats ?"
    one, other = (tokenizer.decode(encode_query(tokenizer, kinds[kind][0], 512)) for kind in kinds)
    assert one == kinds["transfer"][0]["article"] + "\n\nTL;DR:" and other == f"Article:\n{one}\n"
    cut = tokenizer.decode(encode_query(tokenizer, kinds["supervised"][0], 40))
    assert cut == "Article:\nA cat left London.\n\n\nTL;DR:\n"      # at its last newline, as the paper
    raw = tmp_path / "raw" / "cnn_stories.tgz"
    raw.write_bytes(raw.read_bytes()[:150])
    with pytest.raises(Problem, match="cnn_stories.tgz is damaged"):
        download.write_articles(tmp_path)


@pytest.mark.parametrize("article, lead", [
    ("One. Two! Three? Four.", "One. Two! Three?"), ("Only one", "Only one"),
    ('He said "No." Then\n\nhe left. Gone.\n\nEnd.', 'He said "No." Then\n\nhe left. Gone.'),
    ("At 3.5 m. B. C. D.", "At 3.5 m. B. C.")])
def test_lead_3_is_the_first_three_sentences(article, lead):
    assert LEAD_3.match(article)[0] == lead


def test_news_are_judged_beside_lead_3(supervised, tmp_path):
    judges = pytest.importorskip("tools.judges")
    pytest.importorskip("matplotlib")
    pages = pytest.importorskip("tools.report")
    record = {"site": "cnn", "title": "", "summary": "my cat left", "format": "supervised"}
    (tmp_path / "valid.jsonl").write_bytes(lines(*(
        record | {"id": f"n{i}", "article": "my cat left. and then some. It is so. More."}
        for i in range(3))))
    shutil.copytree(supervised, tmp_path / "run" / "supervised")
    judges.main(f"--run {tmp_path / 'run'} --data {tmp_path} --posts 3 "
                "--device cpu".split())
    pages.main(f"--run {tmp_path / 'run'} --device cpu".split())
    report = json.loads((tmp_path / "run" / "report" / "report.json").read_text())
    lead = report["policies"]["lead_3"]
    assert report["judge"] == "rouge" and lead["copied"] == 1 and 0.4 < lead["rouge_l"] < 0.6
    assert "lead 3" in (tmp_path / "run" / "report" / "report.md").read_text()


def test_gpt2_arrives_with_its_tokenizer_and_is_where_init_looks(server, tmp_path, monkeypatch, capsys):
    if not (FIXTURES.exists() and SAVED.exists()):
        pytest.skip("shared fixtures are not here")
    here = "/openai-community/gpt2"
    for path in SAVED.iterdir():
        name = "vocab.json" if path.read_bytes().startswith(b"{") else "merges.txt"
        server.files[f"{here}/resolve/main/{name}"] = path.read_bytes()
    for name in ("config.json", "model.safetensors"):
        content = (FIXTURES / "gpt2_tiny" / name).read_bytes()
        server.files[f"{here}-medium/resolve/main/{name}"] = content
        server.files[f"{here}/resolve/main/{name}"] = content
    monkeypatch.chdir(tmp_path)
    for _ in range(2):                             # the second time nothing is left to do
        download.main(["gpt2-medium", "--base-url", server.url])
        assert len(server.asked) == 4
    net = convert.load_model("data/gpt2-medium")
    assert net.config.layers == 2 and data.load_tokenizer("data/gpt2-medium").n_vocab == 50257
    assert (tmp_path / "data/gpt2-medium/tokenizer.tiktoken").exists()
    with pytest.raises(Problem, match="has not the sha256 248dfc39"):       # the tiny one is not GPT-2
        download.main(["gpt2", "--base-url", server.url])


@pytest.mark.skipif(not FIXTURES.exists(), reason="shared fixtures are not here")
def test_released_models_arrive_shard_by_shard(server, tmp_path, capsys):
    for name, fixture in (("sup4", "policy_2shards"), ("rm4", "reward"), ("sup4_ppo_rm4", "policy")):
        for path in (FIXTURES / "openai_tiny" / fixture).rglob("*.*"):
            to = path.relative_to(FIXTURES / "openai_tiny" / fixture)
            server.files[f"/models/{name}/{to}"] = path.read_bytes()
    download.main(["openai-models", "--base-url", server.url, "--out", str(tmp_path)])
    assert "python -m tools.convert import-openai" in capsys.readouterr().out
    for name, head, files in (("sup4", "lm", 12), ("rm4", "scalar", 6), ("sup4_ppo_rm4", "lm", 6)):
        config, _ = convert.read_openai(tmp_path / name, 250)
        assert config.head == head
        assert len(list((tmp_path / name / "checkpoint").glob("*.pkl"))) == files
    (tmp_path / "x" / "info.json").parent.mkdir()
    (tmp_path / "x" / "info.json").write_text("[]")
    with pytest.raises(Problem, match="info.json is no JSON object"):
        download.download("rm4", tmp_path / "x", server.url)


def test_an_unknown_target_names_those_there_are(tmp_path):
    with pytest.raises(Problem, match="download reddit: unknown; one of tldr, queries"):
        download.main(["reddit", "--out", str(tmp_path)])


def test_describe_prints_the_table_beside_the_papers(server, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(SAVED if SAVED.exists() else tmp_path))
    tldr(server)
    server.files["/datasets/tldr_3_filtered/test.jsonl"] = posts_file(20, 50)   # 10 of train again
    download.main(["tldr", "--base-url", server.url, "--out", str(tmp_path)])
    capsys.readouterr()
    download.main(["describe", str(tmp_path)])
    told = capsys.readouterr().out
    assert "train           60    116,722           0" in told and "not the paper's splits" in told
    assert "ids that occur again in their split: 0; in two splits: 20" in told
    assert "texts that occur again in their split: 97; in two splits: 1" in told
    assert "train is from: tifu 100.0% (the paper 6.58 %)" in told
    assert told.count("--- t3_") == 3 and "TL;DR: no space before" in told
    monkeypatch.setattr(download, "PAPER_COUNT", {"train": 60, "valid": 20, "test": 20})
    download.main(["describe", str(tmp_path)])
    assert "exactly the paper's splits" in capsys.readouterr().out


def test_a_toy_and_own_text_are_not_held_against_the_papers_counts(tmp_path, capsys):
    toy.main(["--out", str(tmp_path / "toy"), "--posts", "30"])
    capsys.readouterr()
    download.main(["describe", str(tmp_path / "toy")])
    told = capsys.readouterr().out
    assert "\ntrain           30           0   " in told and "paper" not in told
    assert "train is from: " in told and "--- toy" in told
    own = {"id": "mine", "subreddit": "pets", "title": "My cat", "post": "It left.", "summary": "Gone."}
    (tmp_path / "train.jsonl").write_bytes(lines(own))
    download.main(["describe", str(tmp_path)])
    assert "paper" not in capsys.readouterr().out


def test_describe_knows_articles_and_says_when_there_is_nothing(tmp_path, capsys):
    record = {"id": "n", "site": "cnn", "title": "t", "article": "A cat left.", "summary": "Cat."}
    with gzip.open(tmp_path / "valid.jsonl.gz", "wb") as f:
        f.write(lines(record))
    download.main(["describe", str(tmp_path)])
    told = capsys.readouterr().out
    assert "valid is from: cnn 100.0%" in told and "the paper" not in told
    os.mkdir(tmp_path / "empty")
    with pytest.raises(Problem, match="--data: train.jsonl .* is missing"):
        read_posts(None, "train")
    with pytest.raises(Problem, match="holds no .jsonl"):
        download.main(["describe", str(tmp_path / "empty")])
    shutil.rmtree(tmp_path / "empty")


def test_a_mirrors_array_is_read_as_lines_are(tmp_path):
    record = {"id": "1", "subreddit": "s", "title": "t", "post": "half \ud83d", "summary": "x"}
    (tmp_path / "train.json").write_text(json.dumps([record, record], indent=1))
    with gzip.open(tmp_path / "valid.json.gz", "wt") as f:
        f.write(json.dumps([record, 5]))
    assert [p["post"] for p in read_posts(tmp_path, "train")] == ["half ?"] * 2
    with pytest.raises(Problem, match="line 2: not an object but 5"):
        read_posts(tmp_path, "valid")
    (tmp_path / "test.json").write_text("[{}")
    with pytest.raises(Problem, match="broken JSON"):
        read_posts(tmp_path, "test")
