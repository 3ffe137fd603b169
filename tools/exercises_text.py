"""Appendix. The exercises of chapters 1 to 5: tokens, rows, a network, and what it is trained on.

Each class is one exercise (tools/exercises_check.py says what that is). No chapter is imported
here: an oracle that used the book's own functions could not find fault with them.

    python -m tools.exercises check

Read after: data.py, model.py, sft.py.
"""
import itertools
import math
from collections import Counter
from types import SimpleNamespace

import torch
import torch.nn.functional as F

from tools.exercises_check import ByHand, Exercise, Told


class Merge(Exercise):
    chapter, function, in_place = "tools/tokenizer", "merge", True
    question = "How does a word become tokens?"
    hints = (
        "Look at all pairs of neighbours. Joined, a + b is in `ranks` or not; a low rank is early.",
        "`pairwise(parts)` gives the neighbours, `ranks.get(a + b, len(ranks))` their rank; min() "
        "of (rank, i) finds the earliest, of equals the leftmost.",
        "Repeat: find that pair; when it is in no rank, return; else parts[i:i + 2] = [a + b]. "
        "`parts` is changed in place, and nothing is returned.")

    def cases():
        """Pieces as single bytes, and the tokens' ranks."""
        low = {b"lo": 0, b"low": 1, b"we": 2}                # (real ranks start with the bytes')
        lists = [(b"lo", low), (b"low", low), (b"abc", {b"bc": 0, b"ab": 1}),
                 (b"aaa", {b"aa": 0}), (b"lowlow", low), (b"lowe", low), (b"xyz", low)]
        return [([bytes([byte]) for byte in piece], ranks) for piece, ranks in lists]

    def run(function, parts, ranks):
        """`merge` changes its first argument."""
        function(parts, ranks)
        return parts

    def oracle(parts, ranks):
        """In the order in which the tokens were learned: join each wherever it stands."""
        for token in sorted(ranks, key=ranks.get):
            i = 0
            while i + 1 < len(parts):
                if parts[i] + parts[i + 1] == token:
                    parts[i:i + 2] = [token]
                i += 1

    def leftmost(parts, ranks):
        """Joins whatever can be joined, from the left."""
        i = 0
        while i + 1 < len(parts):
            if parts[i] + parts[i + 1] in ranks:
                parts[i:i + 2] = [parts[i] + parts[i + 1]]
                i = 0
            else:
                i += 1

    def once(parts, ranks):
        """Joins the earliest token, and no second one."""
        found = [(ranks[a + b], i) for i, (a, b) in enumerate(itertools.pairwise(parts))
                 if a + b in ranks]
        if found:
            i = min(found)[1]
            parts[i:i + 2] = [parts[i] + parts[i + 1]]

    mistakes = [
        ("leftmost first", "the leftmost pair that is a token is joined, not the earliest token.",
         leftmost),
        ("only once", "one pair is joined, then it stops.", once)]


class LongestCommonSubsequence(Exercise):
    chapter, function = "tools/rouge", "longest_common_subsequence"
    question = "How much do two texts share, in the same order?"
    hints = (
        "Let L[i][j] be the answer for the first i words of a and the first j of b. L[0][j] is 0.",
        "If word i of a equals word j of b, L[i][j] = L[i-1][j-1] + 1. If not, one of the two "
        "words is not needed: the larger of L[i-1][j] and L[i][j-1].",
        "Two rows are enough: `above` (i - 1) and `row` (i), both of len(b) + 1 numbers that start "
        "with 0.")

    def cases():
        """Lists of words."""
        texts = [("a", "a"), ("a", "b"), ("", "a"), ("a b", "b a"), ("a b c", "a x b c"),
                 ("a x b y c", "a b c"), ("b a c b", "a b c b a")]
        return [(a.split(), b.split()) for a, b in texts]

    def oracle(a, b):
        """Try every choice of words of a, the longest first."""
        for n in range(len(a), 0, -1):
            for words in itertools.combinations(a, n):
                rest = iter(b)
                if all(word in rest for word in words):
                    return n
        return 0

    def without_gaps(a, b):
        runs = {tuple(a[i:j]) for i in range(len(a)) for j in range(i + 1, len(a) + 1)}
        return max((len(run) for run in runs for i in range(len(b))
                    if tuple(b[i:i + len(run)]) == run), default=0)

    mistakes = [
        ("order forgotten", "words are counted wherever they stand, as in ROUGE-1.",
         lambda a, b: (Counter(a) & Counter(b)).total()),
        ("no gaps allowed", "this is the longest run of words that both have.", without_gaps)]


def draw(*shape, seed=0):
    """Some numbers from a normal distribution, always the same ones."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Attention(Exercise):
    chapter, function = "model", "attention"
    question = "What does a token find in those before it?"
    hints = (
        "q @ k.mT gives, for each column (row of the table), how well each other column fits.",
        "Divide by sqrt(D). A column may look at itself and those before it: put -inf where the "
        "looked-at column is later. softmax makes 0 of it.",
        "torch.ones(T, T, dtype=torch.bool).tril() is True where looking is allowed: masked_fill "
        "the opposite with -math.inf, softmax over the last dimension, times v.")

    def cases():
        """q, k, v: (B, H, T, D)."""
        q, k, v = torch.tensor([[1., 0], [2, 1]]), torch.tensor([[1., 1], [0, 1]]), torch.eye(2)
        return [tuple(x[None, None] for x in (q, k, v)),
                tuple(draw(2, 2, 4, 3, seed=seed) for seed in range(3))]

    def oracle(q, k, v):
        """One output at a time."""
        found = torch.zeros_like(v)
        for b, h, t in itertools.product(*map(range, q.shape[:3])):
            fits = [math.exp(float(q[b, h, t] @ k[b, h, s]) / math.sqrt(q.shape[3]))
                    for s in range(t + 1)]
            found[b, h, t] = sum(fit / sum(fits) * v[b, h, s] for s, fit in enumerate(fits))
        return found

    def unscaled(q, k, v):
        seen = torch.ones(q.shape[2], q.shape[2]).tril() > 0
        return (q @ k.mT).masked_fill(~seen, -math.inf).softmax(-1) @ v

    def over_queries(q, k, v):
        seen = torch.ones(q.shape[2], q.shape[2]).tril() > 0
        return (q @ k.mT / math.sqrt(q.shape[3])).masked_fill(~seen, -math.inf).softmax(-2) @ v

    mistakes = [
        ("sees the future", "each column also looks at those after it, which it has to predict.",
         lambda q, k, v: (q @ k.mT / math.sqrt(q.shape[3])).softmax(-1) @ v),
        ("not divided by sqrt(D)", "with many channels, one column gets all of the weight.",
         unscaled),
        ("mask after softmax", "what is left no longer adds up to 1.",
         lambda q, k, v: (q @ k.mT / math.sqrt(q.shape[3])).softmax(-1).tril() @ v),
        ("softmax over the wrong dimension", "the weights of one column have to add up to 1.",
         over_queries)]


ROWS = "tokens", "columns", "targets", "is_response"       # the four fields of Rows


def laid_out(queries, responses, pad, length=None, shift=-1, ends_early=0, all_real=False):
    """The fields of Rows, number by number, as the docstring of Rows draws them; and variants."""
    T = max(len(q) + len(r) for q, r in zip(queries, responses, strict=True))
    R = length or max(map(len, responses))
    rows = {name: [] for name in ROWS}
    for q, r in zip(queries, responses, strict=True):
        n, last = len(q), len(q) + len(r) - 1
        rows["tokens"].append(q + r + [pad] * (T - n - len(r)))
        rows["columns"].append([min(n + shift + t, last) for t in range(R)])
        rows["targets"].append(r + [pad] * (R - len(r)))
        rows["is_response"].append([all_real or t < len(r) - ends_early for t in range(R)])
    return tuple(torch.tensor(rows[name]) for name in ROWS)


class LayOut(Exercise):
    chapter, function, results = "model", "lay_out", ROWS
    question = "Which columns predict the response, and which count?"
    hints = (
        "Draw one row with a query of 2 and a response of 2 tokens. In which column is the first "
        "response token, and in which one is it predicted?",
        "`stack` makes one tensor of lists. A query of n tokens ends in column n - 1: there "
        "response token 0 is predicted, so token t in n - 1 + t.",
        "n and r as (B, 1), t = torch.arange(R)[None]: columns = minimum(n - 1 + t, n + r - 1), "
        "is_response = t < r. With `length`, pad the targets to that width first.")

    def cases():
        """queries, responses, pad, length."""
        return [([[5, 6]], [[7, 9]], 10, None),
                ([[5, 6, 4], [5]], [[7, 9], [7, 8, 9]], 10, None),
                ([[5, 6], [5, 6, 7]], [[9], [7, 9]], 10, 4)]

    def oracle(queries, responses, pad, length):
        return laid_out(queries, responses, pad, length)

    mistakes = [
        ("logits off by one", "a token is predicted in the column before it, not in its own.",
         lambda *args: laid_out(*args, shift=0)),
        ("one column too early", "the query's last column already predicts the response's first.",
         lambda *args: laid_out(*args, shift=-2)),
        ("padding learned from", "is_response is True past the end.",
         lambda *args: laid_out(*args, all_real=True)),
        ("end left out", "<|endoftext|>, too, is a response token; a policy has to learn to stop.",
         lambda *args: laid_out(*args, ends_early=1))]


class Last(Exercise):
    chapter, function = "model", "Rows.last"
    question = "In which column is a whole summary read?"
    told = "The column of the last real token, (B, 1) long: there the reward model's score is read."
    hints = (
        "columns[:, 0] is the query's last column. How many tokens follow it that are not padding?",
        "is_response is True once for each of them.",
        "self.columns[:, :1] + self.is_response.sum(1, keepdim=True)")

    def cases():
        """Rows, of which one is shorter than the other."""
        texts = [([[5, 6]], [[7, 9]], 10),
                 ([[5, 6, 4], [5]], [[7, 9], [7, 9]], 10, 4),
                 ([[5, 6, 4], [5]], [[9], [7, 8, 8, 9]], 10)]
        return [(SimpleNamespace(**dict(zip(ROWS, laid_out(*some), strict=True))),)
                for some in texts]

    def oracle(rows):
        """Walk from the left to the last token that is not padding."""
        real = rows.is_response.tolist()
        return torch.tensor([[first + sum(1 for each in row if each)]
                             for (first, *_), row in zip(rows.columns.tolist(), real, strict=True)])

    mistakes = [
        ("score of the truncated row", "one column too early, before the last token is seen.",
         lambda rows: rows.columns[:, :1] + rows.is_response.sum(1, keepdim=True) - 1),
        ("score at padding", "the last column of the table is padding in all but the longest row.",
         lambda rows: torch.full_like(rows.columns[:, :1], rows.tokens.shape[1] - 1)),
        ("one column too late", "the column after the last token is padding, or outside the row.",
         lambda rows: rows.columns[:, :1] + rows.is_response.sum(1, keepdim=True) + 1)]


def log_prob(logits, token, temperature=1.0):
    """log softmax(logits / temperature)[token], with math alone. logits: a list."""
    scaled = [x / temperature for x in logits]
    return scaled[token] - max(scaled) - math.log(sum(math.exp(x - max(scaled)) for x in scaled))


class TokenLogp(Exercise):
    chapter, function = "model", "token_logp"
    question = "How probable was the token that stands there?"
    hints = (
        "The log-probabilities of all tokens are log_softmax(logits / temperature, -1).",
        "Of each place take the entry of its token: gather along the last dimension. Padding has "
        "the id V, which is outside: make it 0 first; nobody reads that number.",
        "tokens = tokens.masked_fill(tokens >= V, 0); (logits / temperature).log_softmax(-1)"
        ".gather(-1, tokens[..., None])[..., 0]. (Ours asks F.cross_entropy, which needs less "
        "memory.)")

    def cases():
        """logits (B, R, V), tokens (B, R), temperature."""
        return [(torch.tensor([[[1.0, 2.0, 0.0], [0.0, 1.0, 3.0]]]), torch.tensor([[1, 2]]), 1.0),
                (draw(2, 3, 4), torch.tensor([[1, 3, 4], [2, 0, 1]]), 0.5),
                (draw(1, 2, 3) * 100, torch.tensor([[0, 2]]), 1.0)]

    def run(function, logits, tokens, temperature):
        """At padding, which nobody reads, any number will do."""
        found = function(logits, tokens, temperature)
        if found.shape != tokens.shape:
            return found
        real = (tokens < logits.shape[-1]).tolist()
        return [[logp if keep else "any" for logp, keep in zip(*row, strict=True)]
                for row in zip(found.tolist(), real, strict=True)]

    def oracle(logits, tokens, temperature):
        """One token at a time."""
        V = logits.shape[-1]
        return torch.tensor([[log_prob(at.tolist(), int(token) if token < V else 0, temperature)
                              for at, token in zip(*row, strict=True)]
                             for row in zip(logits, tokens, strict=True)])

    def of(change=lambda logp: logp, heat=lambda temperature: temperature):
        """What somebody writes who does one thing more, or has another temperature."""
        def wrong(logits, tokens, temperature):
            tokens = tokens.masked_fill(tokens >= logits.shape[-1], 0)[..., None]
            logp = (logits / heat(temperature)).log_softmax(-1)
            return change(logp.gather(-1, tokens)[..., 0])
        return wrong

    mistakes = [
        ("logits off by one", "these are aligned already, logits[:, t] belongs to tokens[:, t].",
         lambda logits, tokens, T: TokenLogp.of()(logits[:, :-1], tokens[:, 1:], T),
         lambda logits, tokens, T: TokenLogp.of()(logits[:, :-1], tokens, T),
         lambda logits, tokens, T: TokenLogp.of()(logits.roll(1, 1), tokens, T)),
        ("padding not replaced", "padding is id V, outside of the logits: make it 0 first.",
         lambda logits, tokens, T:
             (logits / T).log_softmax(-1).gather(-1, tokens[..., None])[..., 0],
         lambda logits, tokens, T: -F.cross_entropy((logits / T).mT, tokens, reduction="none")),
        ("log base", "nats are wanted, natural logarithms, not bits.",
         of(lambda logp: logp / math.log(2))),
        ("log base", "nats are wanted, natural logarithms, not bits. (And the log of a probability "
         "that is rounded to 0 is -inf: log_softmax knows better.)",
         of(lambda logp: logp.exp().log2())),
        ("log of 0", "a small probability is rounded to 0, and its log is -inf; use log_softmax.",
         of(lambda logp: logp.exp().log())),
        ("wrong sign", "this is the loss, minus the log-probability.", of(lambda logp: -logp)),
        ("log forgotten", "this is the probability.", of(lambda logp: logp.exp())),
        ("temperature forgotten", "the policy sampled from softmax(logits / temperature).",
         of(heat=lambda temperature: 1)),
        ("temperature multiplied", "it divides the logits.",
         of(heat=lambda temperature: 1 / temperature))]


class Choose(Exercise):
    chapter, function, results = "model", "choose", ("token", "logp")
    question = "How is a token drawn from logits and one random number?"
    hints = (
        "Probabilities, then their running sum: .5 .3 .2 becomes .5 .8 1. Where in it is u?",
        "The first place whose running sum is *above* u: count how many sums are <= u. Without u: "
        "argmax.",
        "logp = (logits / temperature).log_softmax(-1); sums = logp.exp().cumsum(-1); token = "
        "(sums <= u[:, None]).sum(-1), at most V - 1; gather its logp.")

    def cases():
        """logits (B, V), temperature, u (B,)."""
        p = torch.tensor([[0.5, 0.3, 0.2]]).log()
        below_1 = torch.tensor([[-2.0, 0, 1, 0, 1]])   # in fp32 its sum is rounded to .9999998
        return [(p, 1.0, torch.tensor([0.6]).double()), (p, 1.0, None),
                (torch.tensor([[-math.inf, 0.0, 0.0]]), 1.0, torch.zeros(1).double()),
                (torch.cat([p, p, p.flip(1)]), 0.5, torch.tensor([0.6, 0.9, 0.1]).double()),
                (below_1, 1.0, torch.tensor([1 - 2**-24]).double())]

    def run(function, logits, temperature, u):
        """Where u is the only random number."""
        before = torch.get_rng_state()
        found = function(logits, temperature, u)
        if not torch.equal(before, torch.get_rng_state()):
            raise Told("a random number was drawn (by multinomial?): u is the one to use")
        return found

    def oracle(logits, temperature, u):
        """Walk along the probabilities until they add up to more than u."""
        tokens, logps = [], []
        for i, row in enumerate(logits.tolist()):
            logp = [log_prob(row, token, temperature) for token in range(len(row))]
            token, total = 0, math.exp(logp[0])
            while u is not None and total <= u[i]:
                token += 1
                total += math.exp(logp[token])
            tokens.append(token if u is not None else logp.index(max(logp)))
            logps.append(logp[tokens[-1]])
        return torch.tensor(tokens), torch.tensor(logps)

    def right(logits, temperature, u, below=torch.le, report=None):
        """What most mistakes start from."""
        logp = (logits / temperature).log_softmax(-1)
        sums = logp.exp().double().cumsum(-1)
        token = logp.argmax(-1) if u is None else below(sums, u[:, None]).sum(-1)
        token = token.clamp(max=logits.shape[1] - 1)
        logp = logp if report is None else (logits / report).log_softmax(-1)
        return token, logp.gather(-1, token[:, None])[:, 0]

    def in_fp32(token_of, read=lambda logp, token: logp.gather(-1, token[:, None])[:, 0]):
        """The running sum as it is rounded. token_of: where it is above u, (B, V) bool -> (B,)."""
        def wrong(logits, temperature, u):
            logp = (logits / temperature).log_softmax(-1)
            token = logp.argmax(-1) if u is None else token_of(logp.exp().cumsum(-1) > u[:, None])
            return token, read(logp, token)
        return wrong

    mistakes = [
        ("border", "at u = 0 the first token would be chosen even if its probability is 0.",
         lambda logits, temperature, u: Choose.right(logits, temperature, u, torch.lt)),
        ("sum below 1", "rounded probabilities may add up to 0.9999998, and u may be above that: "
         "then it is the last token.",
         in_fp32(lambda above: above.int().argmax(-1)),
         in_fp32(lambda above: (~above).sum(-1)),
         in_fp32(lambda above: (~above).sum(-1), lambda logp, t: logp[torch.arange(len(t)), t])),
        ("temperature forgotten", "it divides the logits before softmax.",
         lambda logits, temperature, u: Choose.right(logits, 1.0, u)),
        ("temperature multiplied", "it divides the logits.",
         lambda logits, temperature, u: Choose.right(logits, 1 / temperature, u)),
        ("log-prob at another temperature", "PPO needs that of the distribution it was drawn from.",
         lambda logits, temperature, u: Choose.right(logits, temperature, u, report=1.0)),
        ("always the most probable", "u has no effect.",
         lambda logits, temperature, u: Choose.right(logits, temperature, None))]


class Score(Exercise):
    chapter, function = "model", "score_rows"
    question = "What does a reward model say of a whole summary?"
    hints = (
        "A row is a query and a response; the network gives a number in each column.",
        "Only the number at the last real token has seen the whole summary: `last` of Rows says "
        "where that is.",
        'model(rows.tokens, at=rows.last)[:, 0]. (The head "sum", which reads all columns of the '
        "response, is not asked for.)")

    def cases():
        """A network, Rows."""
        found = []
        for texts in (([[1, 2]], [[3, 5]], 6), ([[1, 2], [4]], [[3, 4, 4, 5], [3, 5]], 6)):
            rows = SimpleNamespace(**dict(zip(ROWS, laid_out(*texts), strict=True)))
            rows.last = Last.oracle(rows)
            found.append((ByHand(6, "scalar"), rows))
        return found

    def oracle(model, rows, begin=0, end=0):
        """Each row alone: then there is no padding, and its last column is the last."""
        first = [begin * n for n in (rows.columns[:, 0] + 1).tolist()]
        stop = (rows.last[:, 0] + 1 + end).tolist()
        return torch.stack([model(tokens[None, i:j])[0, -1] for tokens, i, j in
                            zip(rows.tokens, first, stop, strict=True)]).detach()

    mistakes = [
        ("score of the truncated row", "read one column too early, before the last token is seen.",
         lambda model, rows: Score.oracle(model, rows, end=-1)),
        ("score at padding", "read in the table's last column, which in shorter rows is padding.",
         lambda model, rows: model(rows.tokens)[:, -1].detach()),
        ("query left out", "the reward model has to see the post, too.",
         lambda model, rows: Score.oracle(model, rows, begin=1))]


def nats(network, rows, shift=-1, query=False, padding=False):
    """-log pi summed over the responses, one token at a time; and variants."""
    total, R = 0.0, max(len(r) for _, r in rows)
    for q, r in rows:
        logits = network(torch.tensor([q + r]))[0].tolist()                          # (T, V)
        first = 1 if query else len(q)
        for column in range(first, len(q + r)):
            total -= log_prob(logits[min(column + shift, len(logits) - 1)], (q + r)[column])
        if padding:                                # past the end: id 0, read in the last column
            total -= (R - len(r)) * log_prob(logits[-1], 0)
    return torch.tensor(total)


class Nll(Exercise):
    chapter, function = "sft", "nll"
    question = "What is learned from, and how is it added up?"
    hints = (
        "Lay the rows out, ask the network for logits in rows.columns only, take the log-prob of "
        "rows.targets there.",
        "Padding must add nothing: set its log-probs to 0 where is_response is False. (Do not "
        "multiply by the mask: NaN * 0 is NaN.)",
        "The sum, not the mean: `train` divides by the number of tokens of all micro-batches and "
        "processes. -logp.masked_fill(~rows.is_response, 0).sum()")

    def cases():
        """A network, (query, response) pairs."""
        return [(ByHand(6), [([1, 2], [3, 5])]),
                (ByHand(6), [([1, 2], [3, 4, 4, 5]), ([4, 3, 1], [5])])]

    def run(function, network, rows):
        """Without its gradient."""
        return function(network, rows).detach()

    def oracle(network, rows):
        return nats(network, rows)

    def mean_of_all(padding):
        """Divided by the size of the table; padding: whether it was learned from, too."""
        return lambda network, rows: (
            nats(network, rows, padding=padding) / (len(rows) * max(len(r) for _, r in rows)))

    mistakes = [
        ("logits off by one", "each token is predicted in the column before it, not in its own.",
         lambda network, rows: nats(network, rows, shift=0)),
        ("query learned from", "only the response counts here.",
         lambda network, rows: nats(network, rows, query=True)),
        ("padding learned from", "what stands past a row's end must add nothing.",
         lambda network, rows: nats(network, rows, padding=True)),
        ("mean over padding", "the sum is wanted; and a mean over (B, R) also counts padding.",
         mean_of_all(padding=False), mean_of_all(padding=True)),
        ("mean for sum", "divided here, every micro-batch counts the same, however long it is.",
         lambda network, rows: nats(network, rows) / sum(len(r) for _, r in rows)),
        ("wrong sign", "this one is to be minimised, so minus the log-probability.",
         lambda network, rows: -nats(network, rows))]
