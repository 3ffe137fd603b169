"""tools/play.py: its numbers are the chapters' own, its site as narrow as the labelling site."""
import json
import shutil
import threading
import time

import pytest
import torch
from test_label_site import EVIL, FAINT, HIDDEN, SIDEWAYS, Browser, Client
from test_sample import make_checkpoint, make_data

from data import COMPARISON, read_comparisons, read_posts
from evaluate import log_prob
from runtime import ALONE, Problem
from sample import load_checkpoint, score_texts, split_of, summarise, worked_examples
from tools import play
from tools.microscope import token_text

ASK = {"number": 0, "temperature": 0, "best_of": 1, "seed": 0}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of random weights, beside its data/."""
    folder = tmp_path_factory.mktemp("play")
    data = make_data(folder / "data")
    make_checkpoint(folder / "run/pretrained", data, seed=1, loss_on="all")
    make_checkpoint(folder / "run/supervised", data, seed=2)
    make_checkpoint(folder / "run/ppo", data, seed=3, temperature=0.9, kl_coef=0.2)
    make_checkpoint(folder / "run/reward", data, "scalar", seed=4)
    return folder / "run"


@pytest.fixture(scope="module")
def server(run):
    """The site on a thread."""
    server = play.site_of(play.Config(run=str(run), port=0), ALONE)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def site(run, server):
    """The site; what was kept is gone afterwards."""
    yield server
    (run / "played.jsonl").unlink(missing_ok=True)


def ask(site, path, **body):
    return Client(site.server_port).post(path, **body)


def test_the_page_shows_what_the_chapters_say(run, site):
    post = read_posts(run.parent / "data", "valid")[0]
    status, found = ask(site, "/write", **ASK)
    assert status == 200
    pretrained, supervised, ppo = (load_checkpoint(run / stage)
                                   for stage in ("pretrained", "supervised", "ppo"))
    reward = load_checkpoint(run / "reward", head="scalar")
    texts = {"the author": post["summary"].strip(),
             "pretrained": summarise(pretrained, [post], worked_examples(run.parent / "data", 0))[0],
             "supervised": summarise(supervised, [post])[0],
             "human feedback": summarise(ppo, [post])[0]}
    assert [row["who"] for row in found["rows"]] == list(texts)
    for row, text in zip(found["rows"], texts.values(), strict=True):
        score, = score_texts(reward, [post], [text])
        response, = ppo.responses([text])
        ours, theirs = (log_prob(who, who.queries([post]), [response], 0.9).item()
                        for who in (ppo, supervised))
        assert row["score"] == pytest.approx(score, abs=1e-4)
        assert len(row["tokens"]) == len(row["log_ratio"]) == len(row["reward"]) == len(response)
        assert row["tokens"] == [token_text(ppo.tokenizer, token) for token in response]
        assert sum(row["log_ratio"]) == pytest.approx(ours - theirs, abs=1e-3)
        assert sum(row["reward"]) == pytest.approx(score - 0.2 * (ours - theirs), abs=1e-3)
        assert row["reward"][0] == pytest.approx(-0.2 * row["log_ratio"][0], abs=1e-4)


def test_best_of_n_pleases_the_reward_model_more_and_seeds_differ(site):
    def scores(**how):
        rows = ask(site, "/write", **{**ASK, "temperature": 1, **how})[1]["rows"]
        return {row["who"]: row["score"] for row in rows}, [row["text"] for row in rows]
    one, many = scores(), scores(best_of=16)
    assert scores() == one and scores(seed=1)[1] != one[1]
    assert all(many[0][who] >= one[0][who] for who in one[0]) and many[0] != one[0]
    assert many[0]["the author"] == one[0]["the author"]


def test_a_typed_post_has_no_author_and_one_is_kept_as_comparisons(run, site):
    typed = {"post": "My sister sold my bike.  "}
    rows = ask(site, "/write", **{**ASK, "number": None, **typed})[1]["rows"]
    assert [row["who"] for row in rows] == ["pretrained", "supervised", "human feedback"]
    texts = [{"who": row["who"], "text": f"{row['text']} {i}"} for i, row in enumerate(rows)]
    assert ask(site, "/keep", **typed, texts=texts, best=1) == (200, {"kept": 2})
    texts[0]["text"] = texts[2]["text"]                   # the same text: no comparison with it
    assert ask(site, "/keep", number=0, texts=texts, best=0) == (200, {"kept": 1})
    first, second, third = read_comparisons(run / "played.jsonl", shape=COMPARISON)
    assert [r["choice"] for r in (first, second, third)] == [1, 0, 0]
    for record, rivals in ((first, texts[:2]), (second, texts[1:]), (third, texts[:2])):
        chosen = record["summaries"][record["choice"]]
        best = texts[0] if record is third else texts[1]
        assert (chosen["policy"], chosen["text"]) == (best["who"], " " + best["text"])
        assert [s["policy"] for s in record["summaries"]] == [r["who"] for r in rivals]
        assert record["split"] == split_of(record["info"]) and record["worker"] == "me"
    assert first["info"]["post"] == "My sister sold my bike." and first["info"]["id"] != "typed"
    assert third["info"]["id"] == read_posts(run.parent / "data", "valid")[0]["id"]


@pytest.mark.parametrize("path, body", [
    ("/write", {}), ("/write", {"number": None, "post": "  "}), ("/write", {"number": 99}),
    ("/write", {"number": True}), ("/write", {"best_of": 65}), ("/write", {"best_of": 0}),
    ("/write", {"best_of": "2"}), ("/write", {"temperature": 2}), ("/write", {"temperature": [1]}),
    ("/write", {"seed": 1.5}), ("/write", {"post": "x" * 20_001}), ("/write", {"post": 3}),
    ("/keep", {}), ("/keep", {"texts": "ab", "best": 0}), ("/keep", {"texts": [], "best": 0}),
    ("/keep", {"texts": [{"who": "a", "text": 1}] * 2, "best": 0}),
    ("/keep", {"texts": [{"who": "a"}] * 2, "best": 0}),
    ("/keep", {"texts": [{"who": "a", "text": "b"}] * 2, "best": 2}),
    ("/keep", {"texts": [{"who": "a", "text": "b"}] * 2, "best": True})])
def test_a_malformed_request_is_refused_and_keeps_nothing(run, site, path, body):
    whole = body and {**ASK, **body} if path == "/write" else {"number": 0, **body}
    status, reply = ask(site, path, **whole)
    assert status == 400 and list(reply) == ["error"] and not (run / "played.jsonl").exists()


@pytest.mark.parametrize("headers, status", [
    ({"Host": "evil.example"}, 403), ({"Origin": "https://evil.example"}, 403),
    ({"Content-Type": "text/plain"}, 415)])
def test_only_this_sites_page_may_ask(site, headers, status):
    line = Client(site.server_port)
    assert line.raw("POST", "/write", json.dumps(ASK), **headers)[0].status == status
    assert Client(site.server_port).raw("GET", "/../play.py")[0].status == 404
    policy = Client(site.server_port).raw("GET", "/")[0].headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy


def test_one_request_at_a_time_touches_the_networks(site, monkeypatch):
    inside, most = [], []
    honest = play.look

    def slow(*args):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.05)
        inside.pop()
        return honest(*args)
    monkeypatch.setattr(play, "look", slow)
    said = []
    threads = [threading.Thread(target=lambda: said.append(ask(site, "/write", **ASK)))
               for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1 and len(most) == 4 and all(answer == said[0] for answer in said)


@pytest.mark.parametrize("missing", ["reward", "ppo"])
def test_a_run_that_is_not_that_far_is_a_problem(run, tmp_path, missing):
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns(missing))
    with pytest.raises(Problem, match="train them first"):
        play.main(["--run", str(tmp_path / "run"), "--port", "0", "--device", "cpu"])


def test_one_plays_by_keyboard_on_any_screen_and_texts_stay_texts(run, site, tmp_path):
    for program in ("chromium", "chromedriver"):
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed (Debian: apt install chromium chromium-driver)")
    browser = Browser(tmp_path / "profile")
    try:
        for width, height in ((400, 800), (800, 900), (1400, 900)):
            for scheme in ("light", "dark"):
                browser.media(width, height, scheme)
                browser.open(site.urls[0])
                browser.until("settings && !busy")
                browser.press("Tab", "Tab", *"My cat <b>sat</b>. ")
                browser.press("Tab", "Down", "Tab", "Right", "Right", "Tab", "Tab", "Enter")
                browser.until("rows.length && !busy", 60)
                assert browser.run("return asked.post").endswith("My cat <b>sat</b>. ")
                assert browser.run("return document.querySelector('#n').textContent") == "4"
                tints = browser.run("return [...document.querySelectorAll('.tokens span')].map(x =>"
                                    "x.style.getPropertyValue('--tint') + x.title)")
                assert tints and all(("minus" in t) == ("ratio −" in t) for t in tints)
                assert not browser.run(SIDEWAYS) and not browser.run(FAINT)
                assert browser.run("return document.querySelectorAll('#rows h2').length") == 3
        browser.media(400, 800)
        browser.run("document.querySelectorAll('.tokens')[2].firstChild.focus()")
        browser.press("Right", "Right", "Left")                       # along the tokens
        assert browser.run("return document.activeElement === document.querySelectorAll('.tokens')[2]"
                           ".children[1] && document.querySelector('#says').textContent.includes("
                           "rows[2].tokens[1])")
        browser.press("Tab", "Enter")                                 # the button below them
        browser.until("!busy && document.querySelector('#says').textContent.includes('added')")
        said = browser.run("return document.querySelector('#says').getBoundingClientRect()")
        assert 0 <= said["top"] and said["bottom"] <= 800             # seen where one is
        browser.media(200, 400, scale=2)                              # letters twice as large
        assert not browser.run(SIDEWAYS) and browser.run(HIDDEN) == []
        browser.run(f"rows[0].tokens[0] = rows[0].who = {json.dumps(EVIL.replace(chr(0), ''))}; draw()")
        assert browser.run("return document.querySelectorAll('main script, main img').length") == 0
        assert not browser.complaints()
    finally:
        browser.close()
    assert 1 <= len((run / "played.jsonl").read_text().splitlines()) <= 2
    assert torch.is_grad_enabled()
