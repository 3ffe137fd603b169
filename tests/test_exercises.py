"""The exercises: red when empty, green with our functions, and typical mistakes named."""
import copy
import re
import shutil
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pytest
from conftest import ROOT
from test_house import commands

import evaluate  # noqa: F401  (all chapters come from the project, not from a folder of exercises)
import ppo  # noqa: F401
from runtime import Problem
from tools import exercises as tool
from tools.exercises_check import judge


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exercises") / "mine"
    tool.main(["start", "--out", str(folder)])
    return folder


@pytest.fixture
def folder(started, tmp_path):
    """A folder of exercises, of the test's own."""
    return shutil.copytree(started, tmp_path / "mine", symlinks=True)


def write(folder, name, body):
    """Put a body in the place of a hole."""
    path = folder / f"{tool.NAMES[name].chapter}.py"
    text, hole = path.read_text(), f'raise NotImplementedError("exercise {name}: not written yet")'
    line = next(line for line in text.splitlines() if hole in line)
    indent = line[:len(line) - len(line.lstrip())]
    path.write_text(text.replace(line, textwrap.indent(textwrap.dedent(body).strip("\n"), indent)))


def said(capsys, *words):
    """What a command prints, and its exit code."""
    try:
        tool.main(list(words))
        code = 0
    except SystemExit as end:
        code = end.code
    return capsys.readouterr().out, code


def test_there_are_enough_and_each_has_three_hints_and_a_question():
    assert len(tool.EXERCISES) == len(tool.NAMES) >= 14
    for exercise in tool.EXERCISES:
        assert len(set(exercise.hints)) == 3 and exercise.question.endswith("?")
        assert all(name and meaning and ways for name, meaning, *ways in exercise.mistakes)


def test_start_keeps_signatures_docstrings_and_everything_else(started):
    for chapter in {exercise.chapter for exercise in tool.EXERCISES}:
        ours, theirs = ((base / f"{chapter}.py").read_text() for base in (ROOT, started))
        mine = [e for e in tool.EXERCISES if e.chapter == chapter]
        assert theirs.count("NotImplementedError") == len(mine)
        assert max(map(len, theirs.splitlines())) <= 100
        for exercise in mine:
            node, left = (tool.find(tool.ast.parse(text), exercise.function) for text in (ours, theirs))
            assert tool.ast.get_docstring(node) == tool.ast.get_docstring(left)
            assert tool.ast.unparse(node.args) == tool.ast.unparse(left.args)
            theirs = tool.filled(theirs, ours, exercise)
        assert theirs == ours                            # nothing else was touched


def test_start_follows_the_chapters_when_they_change():
    text = 'def gae(a):\n    """Doc."""\n    # new\n    return (a +\n            1)\n\n\nx = 1\n'
    assert tool.empty(text, [tool.NAMES["gae"]]) == (
        'def gae(a):\n    """Doc."""\n    raise NotImplementedError("exercise gae: not written yet")'
        '\n\n\nx = 1\n')


@pytest.mark.parametrize("name", tool.NAMES)
def test_an_exercise_is_red_when_empty_and_green_with_ours(name, folder):
    exercise = tool.NAMES[name]
    assert tool.verdict_on(exercise, folder).state == "empty"
    path = folder / f"{exercise.chapter}.py"
    path.write_text(tool.filled(path.read_text(), (ROOT / f"{exercise.chapter}.py").read_text(), exercise))
    assert tool.verdict_on(exercise, folder).state == "solved"      # though the others are empty


@pytest.mark.parametrize("exercise", tool.EXERCISES, ids=lambda e: e.name())
def test_the_oracle_finds_every_mistake_and_tells_them_apart(exercise):
    assert judge(exercise, exercise.oracle).state == "solved"
    for name, meaning, *ways in exercise.mistakes:
        for wrong in ways:
            verdict = judge(exercise, wrong)
            assert verdict.state in ("wrong", "broken") and verdict.how == "this is what comes of"
            assert verdict.mistakes == ((name, meaning),)


MISTAKES = [                       # as a student would write them
    ("KL with the wrong sign", "token_rewards", """
        reward = kl_coef * (rollout.old_logp - rollout.ref_logp)
        end = rollout.is_response.sum(1) - 1
        reward[torch.arange(len(end)), end] += rollout.score
        return reward"""),
    ("reward on padding", "token_rewards", """
        reward = -kl_coef * (rollout.old_logp - rollout.ref_logp)
        reward[:, -1] += rollout.score
        return reward"""),
    ("score one column early", "token_rewards", """
        reward = -kl_coef * (rollout.old_logp - rollout.ref_logp)
        reward[torch.arange(len(reward)), rollout.is_response.sum(1) - 2] += rollout.score
        return reward"""),
    ("score one column late", "token_rewards", """
        reward = -kl_coef * (rollout.old_logp - rollout.ref_logp)
        reward[torch.arange(len(reward)), rollout.is_response.sum(1)] += rollout.score
        return reward"""),
    ("score one column late", "token_rewards", """
        reward = -kl_coef * (rollout.old_logp - rollout.ref_logp)
        return reward.scatter_add(1, rollout.is_response.sum(1)[:, None], rollout.score[:, None])"""),
    ("all KL at the end", "token_rewards", """
        total = rollout.score - kl_coef * (rollout.old_logp - rollout.ref_logp).sum(1)
        end = rollout.is_response.sum(1, keepdim=True) - 1
        return torch.zeros_like(rollout.old_logp).scatter(1, end, total[:, None])"""),
    ("exp of the log ratio", "token_rewards", """
        reward = -kl_coef * torch.exp(rollout.old_logp - rollout.ref_logp)
        end = rollout.is_response.sum(1, keepdim=True) - 1
        return reward.scatter_add(1, end, rollout.score[:, None])"""),
    ("last value used again", "gae", """
        after = torch.cat([value[:, 1:], value[:, -1:]], 1)
        delta, a, out = reward + gamma * after - value, 0, []
        for t in reversed(range(reward.shape[1])):
            a = delta[:, t] + gamma * lam * a
            out.insert(0, a)
        advantage = torch.stack(out, 1)
        return advantage, advantage + value"""),
    ("gamma forgotten", "gae", """
        after = F.pad(value[:, 1:], (0, 1))
        delta, a, out = reward + gamma * after - value, 0, []
        for t in reversed(range(reward.shape[1])):
            a = delta[:, t] + lam * a
            out.insert(0, a)
        advantage = torch.stack(out, 1)
        return advantage, advantage + value"""),
    ("reward for value", "gae", """
        after = F.pad(value[:, 1:], (0, 1))
        delta, a, out = reward + gamma * after - value, 0, []
        for t in reversed(range(reward.shape[1])):
            a = delta[:, t] + gamma * lam * a
            out.insert(0, a)
        advantage = torch.stack(out, 1)
        return advantage, advantage + reward"""),
    ("logits off by one", "lay_out", """
        rows = [q + r for q, r in zip(queries, responses)]
        targets = stack(responses, pad)
        if length:
            targets = F.pad(targets, (0, length - targets.shape[1]), value=pad)
        n, r = (torch.tensor([len(x) for x in part])[:, None] for part in (queries, responses))
        t = torch.arange(targets.shape[1])[None]
        return Rows(stack(rows, pad), (n + t).clamp(max=n + r - 1), targets, t < r)"""),
    ("logits off by one", "nll", """
        rows = lay_out([q for q, _ in rows], [r for _, r in rows], network.config.n_vocab)
        logits = network(rows.tokens, at=torch.minimum(rows.columns + 1, rows.last))
        return -token_logp(logits, rows.targets).masked_fill(~rows.is_response, 0).sum()"""),
    ("logits off by one", "token_logp", """
        logp = (logits / temperature).log_softmax(-1)[:, :-1]
        tokens = tokens.masked_fill(tokens >= logits.shape[-1], 0)
        return logp.gather(-1, tokens[:, 1:, None])[..., 0]"""),
    ("mean over padding", "nll", """
        rows = lay_out([q for q, _ in rows], [r for _, r in rows], network.config.n_vocab)
        return -token_logp(network(rows.tokens, at=rows.columns), rows.targets).mean()"""),
    ("log base", "token_logp", """
        tokens = tokens.masked_fill(tokens >= logits.shape[-1], 0)
        return torch.log2((logits / temperature).softmax(-1)).gather(-1, tokens[..., None])[..., 0]"""),
    ("advantage not detached", "minibatch_loss", """
        rows = Rows(micro.tokens, micro.columns, micro.targets, micro.is_response)
        logp, value = log_probs(policy, rows, cfg.temperature), critic(rows.tokens, at=rows.columns)
        logp, value = (x.masked_fill(~rows.is_response, 0) for x in (logp, value))
        loss, flat = policy_loss(logp, micro.old_logp, micro.returns - value, cfg.clip_ratio)
        of_value = value_loss(value, micro.value, micro.returns, cfg.clip_ratio)
        change = (logp - micro.old_logp).detach()
        return {"policy_loss": loss.sum(), "value_loss": of_value.sum(),
                "clip_fraction": flat.sum(), "approx_kl": (change ** 2).sum() / 2,
                "rollout_mismatch": change.abs().sum()}"""),
    ("logits off by one", "token_logp", """
        logp = (logits / temperature).log_softmax(-1).roll(1, 1)
        tokens = tokens.masked_fill(tokens >= logits.shape[-1], 0)
        return logp.gather(-1, tokens[..., None])[..., 0]"""),
    ("logits off by one", "token_logp", """
        logp, tokens = logits[:, :-1] / temperature, tokens.masked_fill(tokens >= logits.shape[-1], 0)
        return logp.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]"""),
    ("padding not replaced", "token_logp", """
        logp = (logits / temperature).log_softmax(-1)
        return logp.gather(-1, tokens[..., None]).squeeze(-1)"""),
    ("padding not replaced", "token_logp", """
        loss = F.cross_entropy((logits / temperature).flatten(0, 1), tokens.flatten(), reduction="none")
        return -loss.view(tokens.shape)"""),
    ("sum below 1", "choose", """
        logp = (logits / temperature).log_softmax(-1)
        token = logp.argmax(-1) if u is None else (logp.exp().cumsum(-1) <= u[:, None]).sum(-1)
        return token, logp[torch.arange(len(logits)), token]"""),
    ("sum below 1", "choose", """
        logp = (logits / temperature).log_softmax(-1)
        above = logp.exp() if u is None else (logp.exp().cumsum(-1) > u[:, None]).float()
        token = above.argmax(-1)
        return token, logp.gather(-1, token[:, None])[:, 0]"""),
    ("log-prob at another temperature", "choose", """
        sums = (logits / temperature).softmax(-1).double().cumsum(-1)
        token = logits.argmax(-1) if u is None else torch.searchsorted(sums, u[:, None], right=True)[:, 0]
        token = token.clamp(max=logits.shape[1] - 1)
        return token, logits.log_softmax(-1).gather(-1, token[:, None])[:, 0]"""),
    ("quotient of logs", "policy_loss", """
        ratio = logp / old_logp
        plain, clipped = -advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip)
        return torch.max(plain, clipped), clipped > plain"""),
    ("flat where it is not", "policy_loss", """
        ratio = torch.exp(logp - old_logp)
        plain, clipped = -advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip)
        return torch.max(plain, clipped), clipped >= plain"""),
    ("mean returned", "policy_loss", """
        ratio = torch.exp(logp - old_logp)
        plain, clipped = -advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip)
        return torch.max(plain, clipped).mean(), clipped > plain"""),
    ("whitening over padding", "whiten", """
        return (advantage - advantage.mean()) / (advantage.std() + 1e-8) * is_response"""),
    ("ratio upside down", "policy_loss", """
        ratio = torch.exp(old_logp - logp)
        plain, clipped = -advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip)
        return torch.max(plain, clipped), clipped > plain"""),
    ("clip outside the minimum", "policy_loss", """
        gain = advantage * torch.exp(logp - old_logp)
        return -gain.clamp(1 - clip, 1 + clip), gain > 1 + clip"""),
    ("clip outside the minimum", "policy_loss", """
        ratio = torch.exp(logp - old_logp)
        return -advantage * torch.min(ratio, ratio.clamp(1 - clip, 1 + clip)), ratio > 1 + clip"""),
    ("score of the truncated row", "last", """
        return self.columns.gather(1, self.is_response.sum(1, keepdim=True) - 1)"""),
    ("score of the truncated row", "score_rows", """
        return model(rows.tokens, at=rows.last - 1)[:, 0]"""),
    ("score at padding", "score_rows", """
        return model(rows.tokens)[:, -1]"""),
    ("reference updated along with the policy", "prepare", """
        policy = reference = load_model(cfg.policy, world)
        critic = load_model(cfg.reward, world)
        reward_model = load_model(cfg.reward, world, frozen=True)"""),
    ("chosen and rejected swapped", "pairwise_loss", """
        if chosen.shape != rejected.shape:
            raise ValueError
        return -F.logsigmoid(rejected - chosen).mean()"""),
    ("minus forgotten", "pairwise_loss", """
        if chosen.shape != rejected.shape:
            raise ValueError
        return F.logsigmoid(chosen - rejected).mean()"""),
    ("each score by itself", "pairwise_loss", """
        if chosen.shape != rejected.shape:
            raise ValueError
        return -F.logsigmoid(chosen).mean() - F.logsigmoid(-rejected).mean()"""),
    ("log sigmoid forgotten", "pairwise_loss", """
        if chosen.shape != rejected.shape:
            raise ValueError
        return (rejected - chosen).mean()"""),
    ("shapes not checked", "pairwise_loss", "return -F.logsigmoid(chosen - rejected).mean()"),
    ("sees the future", "attention", """
        return F.scaled_dot_product_attention(q, k, v)"""),
    ("posts ignored", "bootstrap", """
        rng = generator(seed, "bootstrap")
        means = [rng.choice(values, len(values)).mean() for _ in range(resamples)]
        return np.std(means), np.quantile(means, [.025, .975]).tolist()"""),
    ("not repeatable", "bootstrap", """
        means = [np.random.choice(values, len(values)).mean() for _ in range(resamples)]
        return np.std(means), np.quantile(means, [.025, .975]).tolist()"""),
    ("mean of the posts' means", "bootstrap", """
        rng = generator(seed, "bootstrap")
        if about is not None:
            values = np.array([values[[a == post for a in about]].mean() for post in set(about)])
        means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(resamples)]
        return np.std(means), np.quantile(means, [.025, .975]).tolist()"""),
    ("best of all N", "best_of", "return values[np.arange(len(scores)), scores.argmax(1)]"),
    ("best value for best score", "best_of", """
        import itertools
        return np.array([[max(some) for some in itertools.combinations(row, n)]
                         for row in values]).mean(1)"""),
]


@pytest.mark.parametrize("mistake, name, body", MISTAKES, ids=[f"{n}-{m}" for m, n, _ in MISTAKES])
def test_a_mistake_is_called_by_its_name(mistake, name, body, folder, capsys):
    write(folder, name, body)
    text, code = said(capsys, "check", name, "--out", str(folder))
    assert code == 1 and re.search(rf"^(This|`got.\S+`) is what comes of: {re.escape(mistake)}\.$", text, re.M)
    assert text.count("is what comes of") == 1
    assert re.search(r"^    expected\S* ", text, re.M) and re.search(r"^    got\S* ", text, re.M)


TWO_MISTAKES = [                   # the named one shows on one case, and then something else is wrong, too
    ("KL with the wrong sign", "token_rewards", """
        reward = kl_coef * (rollout.old_logp - rollout.ref_logp)
        reward[:, -1] += rollout.score
        return reward"""),
    ("log base", "token_logp", """
        tokens = tokens.masked_fill(tokens >= logits.shape[-1], 0)
        return torch.log2(logits.softmax(-1)).gather(-1, tokens[..., None])[..., 0]"""),
    ("chosen and rejected swapped", "pairwise_loss", "return -F.logsigmoid(rejected - chosen).mean()"),
    ("sum for mean", "pairwise_loss", "return -F.logsigmoid(chosen - rejected).sum()"),
    ("log of 0", "pairwise_loss", "return -torch.log(torch.sigmoid(chosen - rejected)).mean()"),
    ("later surprises left out", "gae", """
        advantage = reward + F.pad(value[:, 1:], (0, 1)) - value
        return advantage, advantage + value"""),
    ("log outside the mean", "pairwise_loss", "return -torch.sigmoid(chosen - rejected).mean().log()"),
    ("minus forgotten", "pairwise_loss", "return F.logsigmoid(chosen - rejected).mean()"),
]


@pytest.mark.parametrize("mistake, name, body", TWO_MISTAKES, ids=[f"{n}-{m}" for m, n, _ in TWO_MISTAKES])
def test_a_mistake_is_named_on_the_shown_case_when_others_differ(mistake, name, body, folder, capsys):
    write(folder, name, body)
    text, code = said(capsys, "check", name, "--out", str(folder))
    assert code == 1 and re.findall(r"is what comes of: (.*)\.$", text, re.M) == [mistake]
    assert re.search(r"^On this case (it|`got.\w+`) is what comes of", text, re.M)
    assert text.endswith("\nOn other cases it is not: there is one more mistake, or it is a different one.\n")
    tool.check_all([tool.NAMES[name]], folder)
    assert f"  on one case: {mistake}\n" in capsys.readouterr().out


TOLD = [
    ("token_rewards", "`rollout.old_logp` was changed: it is needed later. Compute a new one", """
        reward = rollout.old_logp.sub_(rollout.ref_logp).mul_(-kl_coef)
        return reward.scatter_add_(1, rollout.is_response.sum(1, keepdim=True) - 1, rollout.score[:, None])"""),
    ("gae", "`reward` was changed: it is needed later. Compute a new one", """
        a = after = 0
        for t in reversed(range(reward.shape[1])):
            a = reward[:, t] + gamma * after - value[:, t] + gamma * lam * a
            after, reward[:, t] = value[:, t], a
        return reward, reward + value"""),
    ("lay_out", "`queries` was changed: it is needed later. Compute a new one", """
        n = [len(q) for q in queries]
        for q, r in zip(queries, responses):
            q += r
        n, r = torch.tensor(n)[:, None], torch.tensor([len(r) for r in responses])[:, None]
        t = torch.arange(length or max(map(len, responses)))[None]
        targets = stack(responses, pad)
        targets = F.pad(targets, (0, t.shape[1] - targets.shape[1]), value=pad)
        return Rows(stack(queries, pad), torch.minimum(n - 1 + t, n + r - 1), targets, t < r)"""),
    ("gae", "to be returned, in this order: advantage, returns", "return reward - value"),
    ("policy_loss", "to be returned, in this order: loss, is_flat", """
        ratio = torch.exp(logp - old_logp)
        return torch.max(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip))"""),
    ("choose", "a random number was drawn (by multinomial?): u is the one to use", """
        logp = (logits / temperature).log_softmax(-1)
        token = logp.argmax(-1) if u is None else torch.multinomial(logp.exp(), 1)[:, 0]
        return token, logp.gather(-1, token[:, None])[:, 0]"""),
    *((name, "nothing is returned: a `return` is missing", "pass") for name in tool.NAMES
      if name not in ("merge", "prepare")),                     # these return nothing, or all the rest
]


@pytest.mark.parametrize("name, told, body", TOLD, ids=[f"{n}-{t[:10]}" for n, t, _ in TOLD])
def test_what_is_wrong_without_a_number_is_told(name, told, body, folder, capsys):
    write(folder, name, body)
    text, code = said(capsys, "check", name, "--out", str(folder))
    assert code == 1 and re.search(rf"^    got +{re.escape(told)}$", text, re.M)
    assert "is what comes of" not in text and "No typical mistake" not in text


def spoil(x):
    """Change an argument in place, if that is possible. Returns: whether."""
    if isinstance(x, list):
        x.append(7)
    elif hasattr(x, "fill"):                   # an array
        x[...] = x == 0
    elif hasattr(x, "fill_"):                  # a tensor
        x.copy_(x == 0)
    elif isinstance(x, SimpleNamespace):
        return any([spoil(part) for part in vars(x).values()])
    return isinstance(x, list) or hasattr(x, "fill") or hasattr(x, "fill_")


@pytest.mark.parametrize("exercise", tool.EXERCISES, ids=lambda e: e.name())
def test_no_argument_may_be_changed(exercise):
    for i, argument in enumerate(exercise.cases()[-1]):
        def right_but_rude(*args, i=i):
            result = exercise.oracle(*args)
            spoil(args[i])
            return result
        if spoil(copy.deepcopy(argument)) and not exercise.in_place:
            assert "was changed: it is needed later" in judge(exercise, right_but_rude).got.text


OTHER_WAYS = [
    ("token_logp", """
        tokens = tokens.clamp(max=logits.shape[-1] - 1)
        return torch.distributions.Categorical(logits=logits / temperature).log_prob(tokens)"""),
    ("attention", "return F.scaled_dot_product_attention(q, k, v, is_causal=True)"),
    ("choose", """
        logp = (logits / temperature).log_softmax(-1)
        token = logp.argmax(-1) if u is None else (logp.exp().cumsum(-1) <= u[:, None]).sum(-1)
        token = token.clamp(max=logits.shape[1] - 1)
        return token, logp[torch.arange(len(logits)), token]"""),
    ("gae", """
        def row(r, v):
            out, a, after = [], 0, 0
            for t in range(len(r) - 1, -1, -1):
                a = r[t] + gamma * after - v[t] + gamma * lam * a
                after, out = v[t], [a] + out
            return torch.stack(out)
        advantage = torch.stack([row(r, v) for r, v in zip(reward, value)])
        return advantage, advantage + value"""),
    ("value_loss", """
        clipped = old_value + (value - old_value).clamp(-clip, clip)
        return torch.stack([(value - returns) ** 2, (clipped - returns) ** 2]).amax(0) / 2"""),
    ("prepare", """
        policy, reference = (load_model(cfg.policy, world, frozen=f) for f in (False, True))
        critic, reward_model = (load_model(cfg.reward, world, frozen=f) for f in (False, True))"""),
]


@pytest.mark.parametrize("name, body", OTHER_WAYS, ids=[name for name, _ in OTHER_WAYS])
def test_another_right_way_is_right(name, body, folder, capsys):
    write(folder, name, body)
    text, code = said(capsys, "check", name, "--out", str(folder))
    assert code == 0 and text.startswith(f"{name}: right, on all ")


def test_the_smallest_case_is_shown_with_inputs_expected_and_got(folder, capsys):
    write(folder, "gae", "return reward + 1, reward")
    text, _ = said(capsys, "check", "gae", "--out", str(folder))
    assert text == textwrap.dedent("""\
        gae: not yet right. The smallest case that shows it:

            reward              [[-0.2, 2]]
            value               [[0.5, 1]]
            gamma               1
            lam                 0.95
            expected.advantage  [[1.25, 1]]
            expected.returns    [[1.75, 2]]
            got.advantage       [[0.8, 3]]
            got.returns         [[-0.2, 2]]

        No typical mistake gives this. For a hint: python -m tools.exercises hint gae
        """)


def test_the_page_shows_what_the_tool_prints(folder, capsys):
    write(folder, "token_rewards", MISTAKES[0][2])
    text, _ = said(capsys, "check", "token_rewards", "--out", str(folder))
    page = (ROOT / "docs/tutorial/EXERCISES.md").read_text()
    assert f"```\n$ python -m tools.exercises check token_rewards\n{text}```\n" in page


def test_what_raises_or_never_ends_or_cannot_be_read_is_told(folder, capsys, monkeypatch):
    monkeypatch.setattr("tools.exercises_check.PATIENCE", 0.5)       # of the clock, also while others work
    write(folder, "merge", "import time\nwhile True:\n    time.sleep(0.01)")
    write(folder, "gae", "return reward.no_such_thing")
    for name, told in (("merge", "a loop without end?"), ("gae", "no attribute 'no_such_thing', line ")):
        text, code = said(capsys, "check", name, "--out", str(folder))
        assert code == 1 and told in text
    path = folder / "ppo.py"
    path.write_text(path.read_text().replace("return reward.no_such_thing", "return ("))
    text, code = said(capsys, "check", "gae", "--out", str(folder))
    assert code == 1 and "gae: cannot be read" in text and "ppo.py, line " in text
    path.write_text(path.read_text().replace("return (", "return 0").replace("def gae", "def goe"))
    text, code = said(capsys, "check", "gae", "--out", str(folder))
    assert code == 1 and "'gae'" in text


def test_the_state_of_all_is_a_line_each(folder, capsys):
    write(folder, "attention", "return F.scaled_dot_product_attention(q, k, v)")
    write(folder, "value_loss", "clipped = old_value + (value - old_value).clamp(-clip, clip)\n"
          "return torch.maximum((value - returns) ** 2, (clipped - returns) ** 2) / 2")
    said(capsys, "hint", "gae", "--out", str(folder))
    text, code = said(capsys, "check", "--out", str(folder))
    lines = {line.split()[1]: line.split(maxsplit=4)[2:] for line in text.splitlines()[1:-2]}
    assert list(lines) == list(tool.NAMES) and code == 0
    assert lines["attention"] == ["wrong", "0", "sees the future"]
    assert lines["value_loss"] == ["solved", "0"]
    assert lines["gae"] == ["empty", "1", tool.NAMES["gae"].question]
    assert text.endswith(f"\n1 of {len(tool.NAMES)} solved\n")


def test_a_files_name_means_its_exercises(folder, capsys):
    write(folder, "nll", "return 0")
    for name, meant in (("model.py", ["attention", "lay_out", "token_logp", "choose", "last", "score_rows"]),
                        ("exercises/tools/rouge.py", ["longest_common_subsequence"]), ("sft.py", ["nll"])):
        assert [exercise.name() for exercise in tool.meant(name, "check")] == meant
    text, code = said(capsys, "check", "model.py", "--out", str(folder))
    assert code == 0 and text.endswith("\n0 of 6 solved\n")
    text, code = said(capsys, "check", "sft.py", "--out", str(folder))
    assert code == 1 and text.startswith("nll: not yet right")
    assert said(capsys, "check", "Rows.last", "--out", str(folder))[0].startswith("last: empty")


def test_hints_come_one_at_a_time(folder, capsys):
    texts = [said(capsys, "hint", "gae", "--out", str(folder))[0] for _ in range(4)]
    for i, text in enumerate(texts[:3]):
        assert re.findall(r"^\d", text, re.M) == [str(i + 1)]
    assert re.findall(r"^\d", texts[3], re.M) == ["1", "2", "3"] and "solution gae" in texts[3]
    assert said(capsys, "hint", "whiten", "--out", str(folder))[0].startswith("1. ")


def test_the_solution_is_a_difference_to_ours(folder, capsys):
    text, _ = said(capsys, "solution", "last", "--out", str(folder))
    assert "+        return self.columns[:, :1] + self.is_response.sum(1, keepdim=True)" in text
    assert '-        raise NotImplementedError("exercise last: not written yet")' in text
    path = folder / "model.py"
    path.write_text((ROOT / "model.py").read_text())
    assert said(capsys, "solution", "last", "--out", str(folder))[0] == (
        "last: yours is ours, letter by letter\n")


def test_mistakes_of_the_user_take_one_line(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words, told in ((["start", "--out", str(folder)], "exists already: name another --out"),
                        (["check", "gea", "--out", str(folder)], "exercise 'gea' is unknown: one of merge, "),
                        (["check", "data.py", "--out", str(folder)], "exercise 'data.py' is unknown: one of"),
                        (["hint"], "hint of which exercise? Name one of merge, attention, "),
                        (["solution", "model.py"], "Name one of attention, lay_out, "),
                        (["solve", "gae"], "command 'solve' is unknown"),
                        (["check"], "exercises is no folder of exercises: `python -m tools.exercises start`")):
        with pytest.raises(Problem) as error:
            tool.main(words)
        assert told in str(error.value) and "\n" not in str(error.value)


def test_solved_exercises_make_a_project_that_trains(folder, data_dir):
    for exercise in tool.EXERCISES:
        path = folder / f"{exercise.chapter}.py"
        path.write_text(tool.filled(path.read_text(), (ROOT / f"{exercise.chapter}.py").read_text(), exercise))
    copied = [*ROOT.glob("*.py"), *ROOT.glob("runtime/*.py"), *ROOT.glob("tools/*"),
              *(ROOT / name for name in ("toy.json", "Makefile", "requirements.txt"))]
    for path in copied:                        # the same files: so the same demo
        if path.is_file():
            assert (folder / path.relative_to(ROOT)).read_bytes() == path.read_bytes()
    subprocess.run(["make", "-n", "demo"], cwd=folder, check=True, capture_output=True)
    code = (f"import sft, tools.exercises; assert sft.__file__.startswith({str(folder)!r}); "
            f"sft.main('--data {data_dir} --size toy-tiny --query-length 80 --response-length 16 "
            "--batch 8 --steps 2 --device cpu --out trained'.split()); "
            "tools.exercises.main(['check', 'gae'])")          # and from inside
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0 and "gae: right" in done.stdout, done.stderr
    assert (folder / "trained" / "model.pt").exists()


def test_the_page_lists_every_exercise_with_its_chapter_question_and_the_page_that_shows_it():
    page = (ROOT / "docs/tutorial/EXERCISES.md").read_text()
    rows = re.findall(r"^\|\d+\|`(\w+)`\|\[`[\w/]+\.py`\]\(\.\./\.\./([\w/]+)\.py\)\|(.+)\|(.*)\|$", page, re.M)
    assert len(tool.NAMES) == 19 and "Nineteen functions" in page      # a number in words
    assert [row[:3] for row in rows] == [(e.name(), e.chapter, e.question) for e in tool.EXERCISES]
    assert f"{sum(len(e.mistakes) for e in tool.EXERCISES)} typical mistakes" in page
    pages = {path.stem: path.read_text() for path in (ROOT / "docs/tutorial").glob("*.md")}
    for exercise, (*_, shown) in zip(tool.EXERCISES, rows, strict=True):
        text = (ROOT / f"{exercise.chapter}.py").read_text()
        holes = tool.taken_out(tool.find(tool.ast.parse(text), exercise.function), exercise)
        body = [line.partition("  #")[0].strip() for i, j in holes for line in text.splitlines()[i - 1:j]]
        given_away = [name for name in sorted(pages) if all(line in pages[name] for line in body)]
        assert shown == ", ".join(f"[{name}]({name}.md)" for name in given_away), exercise.name()
    assert "**Nine of the answers" in page and sum(bool(shown) for *_, shown in rows) == 9
    for script, words in commands(page):
        assert script != "tools.exercises" or words[1:2] in ([], ["--out"]) or tool.meant(words[1], "check")
