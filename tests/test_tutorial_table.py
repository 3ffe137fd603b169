"""The tutorial's worked numbers: each table is computed again, by the chapters' own functions."""
import ast
import importlib
import math
import re

import pytest
import torch
from conftest import ROOT

import model
import ppo
import reward

PAGES = sorted((ROOT / "docs/tutorial").glob("[5-9]-*.md")) + [ROOT / "docs/tutorial/EXPERIMENTS.md"]


def table_of(name, first):
    """The table of a page whose first cell, in some row, is `first`: {first cell: other cells}."""
    blocks = re.findall(r"(?:^\|.*\n)+", (ROOT / f"docs/tutorial/{name}").read_text(), re.MULTILINE)
    tables = [{cells[0]: cells[1:] for cells in ([cell.strip() for cell in line.strip("|\n").split("|")]
               for line in block.splitlines(keepends=True))} for block in blocks]
    found, = [table for table in tables if first in table]
    return found


def numbers(cells):
    return [float(cell) for cell in cells if re.fullmatch(r"-?[\d.]+", cell)]


def agree(cells, expected):
    """Each printed number is the expected one, rounded to the digits that are printed."""
    printed = [cell for cell in cells if re.fullmatch(r"-?[\d.]+", cell)]
    values = torch.as_tensor(expected).flatten().tolist()
    assert len(printed) == len(values)
    for text, value in zip(printed, values, strict=True):
        digits = len(text.partition(".")[2])
        assert abs(float(text) - value) <= .5001 * 10 ** -digits, (text, value)


# --------------------------------------------------------------------------------------- PPO's table

@pytest.fixture(scope="module")
def shown():
    return table_of("8-ppo.md", "log pi_old")


def row(shown, name):
    return torch.tensor([numbers(shown[name])], dtype=torch.float64)                    # (1, 3)


def test_the_three_tokens_from_log_ratio_to_loss(shown):
    old, ref, value, now = (row(shown, name) for name in ("log pi_old", "log pi_sft", "value", "log pi, now"))
    is_response = torch.ones(1, 3, dtype=torch.bool)
    rollout = ppo.Rollout(None, None, None, is_response, old, ref, value,
                          torch.tensor([2.], dtype=torch.float64))
    agree(shown["log ratio to sft"], old - ref)
    earned = ppo.token_rewards(rollout, kl_coef=.05)
    delta, _ = ppo.gae(earned, value, 1., 0.)
    advantage, returns = ppo.gae(earned, value, ppo.GAMMA, ppo.LAMBDA)
    whitened = ppo.whiten(advantage, is_response)
    loss, flat = ppo.policy_loss(now, old, whitened, clip=.2)
    for name, expected in (("reward", earned), ("delta", delta), ("advantage", advantage),
                           ("return", returns), ("whitened advantage", whitened),
                           ("ratio", (now - old).exp()), ("loss", loss),
                           ("clipped ratio", (now - old).exp().clamp(.8, 1.2))):
        agree(shown[name], expected)
    assert shown["flat?"][:3] == ["yes" if x else "no" for x in flat[0]]
    assert flat.any() and not flat.all()


# -------------------------------------------------------------------------------- the smaller tables

def test_draws_of_a_token_and_temperatures():
    drawn = table_of("5-sample.md", "token")
    p = torch.tensor([.5, .3, .2])
    u = torch.tensor(numbers(drawn["u"]))
    tokens, _ = model.choose(p.log().expand(len(u), 3), 1., u)
    assert numbers(drawn["token"]) == tokens.tolist() and len(set(tokens.tolist())) == 3
    warm = table_of("5-sample.md", "T = 0.7")
    for name, cells in warm.items():
        if name.startswith("T = "):
            agree(cells, (p.log() / float(name[4:])).softmax(-1))


def test_the_kl_of_the_best_of_n():
    text = (ROOT / "docs/tutorial/5-sample.md").read_text()
    found = re.findall(r"For \$n = (\d+)\$: \$([\d.]+) - ([\d.]+) = ([\d.]+)\$", text)
    assert [int(n) for n, *_ in found] == [2, 16]
    for n, log_n, lost, kl in found:
        n = int(n)
        agree([log_n, lost, kl], [math.log(n), (n - 1) / n, math.log(n) - (n - 1) / n])
        u = torch.arange(.5, 100_000, dtype=torch.float64) / 100_000           # the mean of log density
        density = n * u ** (n - 1)
        assert abs((density * density.log()).mean() - float(kl)) < 1e-3


def test_bradley_and_terrys_tables():
    sums = table_of("7-reward.md", "1.1")
    for d in (0., 1.1, 2.):
        cells = sums[f"{d:g}"]
        chosen, rejected = (reward.pairwise_loss(*pair).item() for pair in (
            (torch.tensor([d]), torch.zeros(1)), (torch.zeros(1), torch.tensor([d]))))
        agree([cells[0].split("· ")[1], cells[1], cells[2]], [chosen, rejected, 3 * chosen + rejected])
    rows = [line.strip("|").split("|") for line in (ROOT / "docs/tutorial/7-reward.md").read_text().splitlines()
            if re.match(r"\| +[\d.]+ \| +[\d.]+ \| +-?[\d.]+ \| +[\d.]+ \| +-[\d.]+ \|", line)]
    assert len(rows) == 3
    for chosen, rejected, *cells in rows:
        scores = torch.tensor([[float(chosen)], [float(rejected)]], requires_grad=True)
        loss = reward.pairwise_loss(*scores)
        agree([cell.strip() for cell in cells], [scores[0].detach() - scores[1].detach(), loss.detach(),
                                                  torch.autograd.grad(loss, scores)[0][0]])


def test_what_three_labellers_choose():
    import label
    import toy
    post = toy.__doc__.split("post      ")[1].split("    author")[0].strip()
    author, ideal = (" ".join(toy.__doc__.split(f"    {word}    ")[1].split(until)[0].split())
                     for word, until in (("author", "    ideal"), ("ideal ", "`gold`")))
    assert ideal.startswith("My cousin")
    page = (ROOT / "docs/tutorial/6-label.md").read_text()
    a, b = (re.search(rf"\* \*\*{name}\*\*.*?: (.*)", page)[1] for name in "AB")
    assert a == author
    tastes = {taste.worker[4:]: taste for taste in label.LABELLERS}
    for name, cells in table_of("6-label.md", "ada").items():
        if (taste := tastes.get(name.split(",")[0])) is not None:
            record = {"post": " ".join(post.split())}
            more = label.points(taste, record, b) - label.points(taste, record, a)
            felt = label.SHARPNESS * (more - 0)
            agree(cells, [more, felt, 1 / (1 + math.exp(-felt))])


def test_draws_of_the_bootstrap():
    values = {1: 1, 2: 1, 3: 0, 4: .5, 5: 1}
    rows = [cells for cells in table_of("9-evaluate.md", "draw").values() if re.fullmatch(r"[\d, ]+", cells[0])]
    assert len(rows) == 3
    for posts, shown, mean in rows:
        drawn = [values[int(post)] for post in posts.split(", ")]
        assert drawn == [.5 if x == "½" else float(x) for x in shown.split(", ")]
        agree([mean], [sum(drawn) / 5])


# ------------------------------------------------------------------------- changes and code to try out

@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_what_a_diff_takes_away_is_there(path):
    for file, body in re.findall(r"^```diff\n--- (\S+)\n(.*?)^```", path.read_text(), re.M | re.S):
        lines = (ROOT / file).read_text().splitlines()
        assert all(line[1:] in lines for line in body.splitlines() if line[0] in "- ")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_code_to_try_out_uses_names_that_exist(path):
    for code in re.findall(r"(?<!-->\n)^```python\n(.*?)^```", path.read_text(), re.M | re.S):
        tree = ast.parse(code)
        ours = {alias.name: importlib.import_module(alias.name) for node in ast.walk(tree)
                if isinstance(node, ast.Import) for alias in node.names if (ROOT / f"{alias.name}.py").exists()}
        used = [(node.value.id, node.attr) for node in ast.walk(tree) if isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name) and node.value.id in ours]
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                ours[node.module] = importlib.import_module(node.module)
                used += [(node.module, alias.name) for alias in node.names]
        assert used and all(hasattr(ours[name], attribute) for name, attribute in used)
