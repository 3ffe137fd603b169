"""The token microscope: its numbers are PPO's, its page is inert and asks no network."""
import base64
import json
import re
import shutil

import pytest
import torch
from test_label_site import EVIL, FAINT, SIDEWAYS, browser  # noqa: F401
from test_sample import make_checkpoint, make_data

import ppo
from data import encode_query, load_tokenizer, read_posts
from model import load_model, token_logp
from runtime import ALONE
from runtime.files import save_tensors
from runtime.world import World
from sample import load_checkpoint
from tools import microscope

FLAGS = dict(episodes=80, batch=10, kl_coef=0.05, temperature=0.9)


DOT = ("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5"
       "ErkJggg==")
HOSTILE = EVIL.replace("\x00", "")           # which no browser keeps in a text
MARKDOWN = f"""# Report

5 posts of `toy`.

| policy | KL |
|--------|---:|
| {HOSTILE} | 1.0 |

* **KL**: nats,
  sampled
* {HOSTILE}

![a dot](report.png)
![none of ours](/etc/passwd.png)
![missing](other.png)
## One post

> {HOSTILE}
> second line
| a lonely line
#no title
"""


def grade(posts, texts):
    return {"overall": [len(text) / 7 for text in texts]}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of random weights, its ppo/ with critic and two snapshots, a third without critic."""
    folder = tmp_path_factory.mktemp("microscope")
    data = make_data(folder / "data")
    make_checkpoint(folder / "supervised", data)
    make_checkpoint(folder / "reward", data, "scalar")
    make_checkpoint(folder / "ppo", data, seed=9, **FLAGS)
    for step in (2, 4, 6):
        policy = load_model(make_checkpoint(folder / f"p{step}", data, seed=step))
        save_tensors(folder / f"ppo/snapshots/step-{step:06d}.pt", policy.state_dict())
    for name, seed in (("snapshots/critic-000002", 12), ("snapshots/critic-000004", 14),
                       ("critic", 19)):
        critic = load_model(make_checkpoint(folder / f"c{seed}", data, "scalar", seed=seed))
        save_tensors(folder / f"ppo/{name}.pt", critic.state_dict())
    return folder


@pytest.fixture(scope="module")
def posts(run):
    evil = {"id": "evil", "subreddit": EVIL, "title": EVIL, "post": EVIL + "\u2028</script>",
            "summary": EVIL}
    return [*read_posts(run / "data", "test")[:4], evil]


def look(run, posts):
    supervised, final = (load_checkpoint(run / name) for name in ("supervised", "ppo"))
    return microscope.look(supervised, final, load_checkpoint(run / "reward", head="scalar"), posts,
                           grade)


@pytest.fixture(scope="module")
def seen(run, posts):
    return look(run, posts)


def one_of_four(i, loses):
    """A post as report.side_by_side has it, with a hostile text."""
    return {"title": f"post {i}", "text": EVIL, "loses": loses, "said": {
        "author": [f"summary {i}", 2.0], "human feedback": [EVIL, None]}}


BESIDE = {"rival": "author", "lost": 3, "n": 40, "posts": [
    one_of_four(i, i in (2, 10, 11)) for i in range(12)]}


@pytest.fixture(scope="module")
def html(run, seen):
    (run / "report.png").write_bytes(base64.b64decode(DOT))
    text = microscope.page(MARKDOWN, run, seen, BESIDE)
    (run / "report.html").write_text(text, encoding="utf-8")
    return text


# ------------------------------------------------------------------------------------- the numbers

def test_the_numbers_are_those_of_ppo(run, posts, seen):
    cfg = ppo.Config(**FLAGS, response_length=12)
    tokenizer = load_tokenizer(run / "ppo")
    supervised, reward, policy, later = (load_model(run / name)
                                         for name in ("supervised", "reward", "p2", "p4"))
    queries = [encode_query(tokenizer, post, 300) for post in posts]
    rollout = ppo.roll_out(policy, supervised, load_model(run / "c12"), reward, queries,
                           range(len(posts)), 0, cfg, ALONE)
    keep = rollout.is_response
    earned = ppo.token_rewards(rollout, 0.05)
    advantage, _ = ppo.gae(earned, rollout.value.masked_fill(~keep, 0.0), 1.0, 0.95)
    whitened = ppo.whiten(advantage, keep)
    wanted = {"log_ratio": rollout.old_logp - rollout.ref_logp, "reward": earned,
              "value": rollout.value, "advantage": advantage, "whitened": whitened,
              "logp": rollout.old_logp, "ref_logp": rollout.ref_logp}
    rows = seen["stops"][1]["rows"]
    for name, values in wanted.items():
        got = torch.tensor([x for row in rows for x in row[name]])
        torch.testing.assert_close(got, values[keep], atol=2e-5, rtol=1e-5)
    assert [row["score"] for row in rows] == pytest.approx(rollout.score.tolist(), abs=2e-5)
    assert [row["grade"] for row in rows] == pytest.approx([len(r["text"]) / 7 for r in rows], abs=1e-5)
    for row, said, kept in zip(rows, rollout.tokens.tolist(), keep, strict=True):
        assert len(row["tokens"]) == int(kept.sum()) <= len(said)

    targets = rollout.tokens.gather(1, (rollout.columns + 1).clamp(max=rollout.tokens.shape[1] - 1))
    with torch.no_grad():
        logp = token_logp(later(rollout.tokens, at=rollout.columns), targets, 0.9)
    count = ppo.policy_loss(logp[keep], rollout.old_logp[keep], whitened[keep], 0.2)[1].sum()
    assert 0 < sum(sum(row["clipped"]) for row in rows) == int(count) < int(keep.sum())


def test_every_stop_has_the_settings_of_ppo(run, posts, seen, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    shutil.copytree(run / "supervised", tmp_path / "run/supervised", dirs_exist_ok=True)
    for stage, flags in (("supervised", dict(query_length=250, response_length=7)),
                         ("ppo", dict(query_length=320, fill=True))):
        config = tmp_path / "run" / stage / "config.json"
        known = json.loads(config.read_text())
        config.write_text(json.dumps(known | {"flags": known["flags"] | flags}))
    shown = look(tmp_path / "run", posts)["stops"][0]["rows"]
    assert max(len(row["tokens"]) for row in shown) == 12                # not supervised's 7
    tokenizer = load_tokenizer(run / "ppo")
    rollout = ppo.roll_out(load_model(run / "supervised"), load_model(run / "supervised"),
                           load_model(run / "reward"), load_model(run / "reward"),
                           [encode_query(tokenizer, post, 320, fill=True) for post in posts],
                           range(len(posts)), 0, ppo.Config(**FLAGS, response_length=12), ALONE)
    got = torch.tensor([x for row in shown for x in row["value"]])
    torch.testing.assert_close(got, rollout.value[rollout.is_response], atol=2e-5, rtol=1e-5)
    assert [row["text"] for row in shown] != [row["text"] for row in seen["stops"][0]["rows"]]


def test_the_stops_run_from_supervised_over_snapshots_with_critics_to_the_end(seen):
    names = [stop["name"] for stop in seen["stops"]]
    assert names == ["supervised", "iteration 2 of 8", "iteration 4 of 8", "final, iteration 8"]
    assert max(abs(x) for row in seen["stops"][0]["rows"] for x in row["log_ratio"]) < 1e-4
    assert all("clipped" in row for stop in seen["stops"][:-1] for row in stop["rows"])
    assert not any("clipped" in row for row in seen["stops"][-1]["rows"])


def test_of_many_snapshots_six_are_chosen_evenly(run, tmp_path):
    shutil.copytree(run / "ppo", tmp_path / "ppo")
    for step in range(1, 21):
        for kind in ("step", "critic"):
            shutil.copy(run / f"ppo/snapshots/{kind}-000002.pt",
                        tmp_path / f"ppo/snapshots/{kind}-{step:06d}.pt")
    final = load_checkpoint(tmp_path / "ppo")
    final = final._replace(flags=final.flags | {"episodes": 200})           # 20 iterations
    names = [name for name, *_ in microscope.stops(
        load_checkpoint(run / "supervised"), final, load_checkpoint(run / "reward", head="scalar"),
        ppo.Config(policy=str(run / "supervised"), reward=str(run / "reward")))]
    steps = [int(name.split()[1]) for name in names[1:-1]]
    assert len(steps) == 6 and steps[0] == 1 and steps[-1] == 19        # 20 is the final one
    assert {b - a for a, b in zip(steps, steps[1:], strict=False)} <= {3, 4}


def test_a_run_without_snapshots_has_two_stops(run, posts, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/ppo/snapshots")
    names = [stop["name"] for stop in look(tmp_path / "run", posts[:1])["stops"]]
    assert names == ["supervised", "final, iteration 8"]


def test_every_rank_writing_all_the_posts_changes_nothing(run, posts, seen):
    class Two(World):                             # of two ranks, one that hears itself twice
        def gather(self, x):
            return torch.stack([x, x], 1).flatten(0, 1)

        def max(self, n):
            return n
    two = Two(0, 2, torch.device("cpu"))
    networks = [load_checkpoint(run / name, two, head)
                for name, head in (("supervised", "lm"), ("ppo", "lm"), ("reward", "scalar"))]
    assert microscope.look(*networks, posts, grade) == seen


def test_bytes_that_are_no_character_are_shown_as_bytes(run):
    tokenizer = load_tokenizer(run / "data")
    texts = [microscope.token_text(tokenizer, token) for token in tokenizer.encode_ordinary("a\u2019")]
    assert texts == ["a", "\\xe2", "\\x80", "\\x99"]


# ----------------------------------------------------------------------------------------- the page

def test_no_text_can_end_the_data(html, seen):
    inside, = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert not set("<>&\u2028\u2029") & set(inside)
    assert json.loads(inside)["microscope"] == seen and json.loads(inside)["markdown"] == MARKDOWN


def test_the_page_names_no_address_elsewhere(html):
    page = re.sub(r'(?s)<script type="application/json".*?</script>', "", html)
    assert not re.findall(r"(?i)https?:|@import|url\(|fetch\(|XMLHttp|innerHTML|outerHTML", page)
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)


@pytest.fixture
def opened(browser, run, html):  # noqa: F811
    browser.open((run / "report.html").as_uri())
    browser.until("document.querySelectorAll('.tokens span').length")
    return browser


LEFT = "\ue012"                               # WebDriver's name of the arrow key
SHOWN = "return [...document.querySelectorAll('.tokens')].map(r => r.children.length)"
COLOURS = ("return [...document.querySelectorAll('.tokens span')]"
           ".map(t => getComputedStyle(t).backgroundColor).join()")


def test_the_slider_changes_tokens_and_colours_and_nothing_is_asked_for(opened, seen):
    lengths = [[len(row["tokens"]) for row in stop["rows"]] for stop in seen["stops"]]
    assert opened.run(SHOWN) == lengths[3]                # opens at the last stop, not at all zeros
    before = opened.run(COLOURS)
    opened.run("document.querySelector('#slider').focus()")
    for n in (2, 1, 0):
        opened.press(LEFT)
        opened.until(f"stop === {n}")
        assert opened.run(SHOWN) == lengths[n] and opened.run(COLOURS) != before
        before = opened.run(COLOURS)
    opened.run("document.querySelector('#kind-value').click()")
    assert opened.run(COLOURS) != before
    assert opened.run("return [...document.images].map(i => i.naturalWidth)") == [1]
    asked = opened.run("return performance.getEntriesByType('resource').map(e => e.name)")
    assert not [name for name in asked if not name.startswith("data:")]
    assert not opened.complaints()


def test_a_token_tells_all_its_numbers_by_keyboard(opened, seen):
    row = seen["stops"][0]["rows"][0]
    opened.run("stop = 0; draw(); document.querySelector('.tokens span').focus()")
    opened.press("Right", "Right")
    told = opened.run("return document.querySelector('#tip').innerText").replace("\u2212", "-")
    assert f"{row['value'][2]:+.3f}" in told and f"{row['logp'][2]:+.3f}" in told
    assert ("yes" if row["clipped"][2] else "no") in told.split()
    opened.press("Escape")
    assert opened.run("return document.querySelector('#tip').hidden")
    opened.run("stop = 3; draw(); document.querySelector('.tokens span').focus()")
    assert "\u2013" in opened.run("return document.querySelector('#tip').innerText")


def test_a_hostile_post_is_shown_inert(opened):
    assert opened.run("return document.title") == "Report"
    assert opened.run("return document.querySelectorAll('main script, main article img').length") == 0
    assert opened.run("return document.querySelectorAll('#posts h3')[4].textContent") == EVIL
    assert opened.run("return document.querySelector('.ours .text').textContent") == EVIL
    for where in ("td", "li:last-child", "blockquote"):
        assert HOSTILE in opened.run(f"return document.querySelector('#report {where}').textContent")
    assert opened.run("return document.querySelector('li strong').textContent") == "KL"


def test_ten_posts_stand_side_by_side_and_a_filter_keeps_those_that_are_lost(opened):
    shown = ("return [...document.querySelectorAll('.four:not([hidden]) h3')]"
             ".map(h => h.textContent)")
    assert opened.run(shown) == [f"post {i}" for i in range(10)]
    assert "3 of 40" in opened.run("return document.querySelector('#beside label').textContent")
    opened.run("document.querySelector('#lost').click()")
    assert opened.run(shown) == ["post 2", "post 10", "post 11"]
    first = opened.run("return [...document.querySelectorAll('.four .sides')[2].children]"
                       ".map(side => side.innerText)")
    assert first[0].split("\n")[0] == "author 2.00" and "summary 2" in first[0]
    assert first[1].startswith("human feedback\n")                   # one that has no grade
    opened.run("document.querySelector('#lost').click()")
    assert len(opened.run(shown)) == 10 and not opened.complaints()


@pytest.mark.parametrize("width", [200, 400, 800, 1400])            # 200: 400 at 200 %
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_screen_scrolls_sideways_and_every_text_is_dark_enough(opened, width, scheme):
    opened.media(width, 900, scheme)
    try:
        for kind in ("log_ratio", "value", "clipped"):
            opened.run(f"document.querySelector('#kind-{kind}').click()")
            assert not opened.run(SIDEWAYS) and not opened.run(FAINT)
        assert not opened.complaints()
    finally:
        opened.media(1280, 900)


@pytest.mark.parametrize("width, height", [(400, 800), (800, 900), (1400, 900), (400, 450)])
def test_what_has_the_focus_is_not_under_the_controls(opened, width, height):
    opened.media(width, height)
    try:
        opened.run("document.querySelector('#posts article:last-child summary').focus()")
        tops = []
        for _ in range(7):
            opened.press_with_shift("Tab")
            tops.append(opened.run(
                "const box = document.activeElement.getBoundingClientRect(), at = document"
                ".elementFromPoint(box.left + 3, box.top + 1); return document.activeElement"
                ".contains(at) && box.bottom <= innerHeight"))
        assert all(tops)
    finally:
        opened.media(1280, 900)


def test_a_phone_scrolls_in_one_direction_only(opened):
    opened.media(390, 844, scale=2, phone=True)
    try:
        assert opened.run("return document.documentElement.scrollWidth <= innerWidth")
        assert opened.run("return innerWidth") == 390
    finally:
        opened.media(1280, 900)


def test_a_report_without_ppo_has_no_microscope(browser, tmp_path):  # noqa: F811
    (tmp_path / "report.html").write_text(microscope.page("# Figures\n\nNo more.", tmp_path))
    browser.open((tmp_path / "report.html").as_uri())
    assert browser.run("return document.body.innerText").split() == ["Figures", "No", "more."]
    assert browser.run("return document.title") == "Figures" and not browser.complaints()


def test_a_critic_that_shares_the_policys_layers_is_looked_at_too(run, posts, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    shutil.copytree(run / "c12", tmp_path / "run/reward", dirs_exist_ok=True)
    own, config = look(tmp_path / "run", posts[:1]), tmp_path / "run/ppo/config.json"
    known = json.loads(config.read_text())
    config.write_text(json.dumps(known | {"flags": known["flags"] | {"critic": "shared"}}))
    shared = look(tmp_path / "run", posts[:1])
    first, second = ([s["rows"][0]["value"] for s in seen["stops"][:2]] for seen in (shared, own))
    assert first[0] != second[0] and first[1] == second[1]     # the new head; critic-000002.pt
    judge = tmp_path / "run/reward/config.json"                # a reward model that reads the sum
    summed = json.loads(judge.read_text())
    judge.write_text(json.dumps(summed | {"model": summed["model"] | {"head": "sum"}}))
    third = [s["rows"][0]["value"] for s in look(tmp_path / "run", posts[:1])["stops"][:2]]
    assert third == first                                      # the critic has the head it was made with
