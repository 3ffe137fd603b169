"""Appendix. What an exercise is, and how an answer to it is judged.

An exercise is a function of a chapter, a list of small cases, and a second way to the answer: the
oracle, in loops that are slow and easy to believe. An answer is right when it equals the oracle on
every case and leaves its arguments as they were. A typical mistake is one more function: what
somebody would write who makes it. When an answer equals that one on every case, or on the case that
is shown, the mistake is named.

    python -m tools.exercises check gae

Read after: tools/exercises.py, which has the commands.
"""
import contextlib
import copy
import functools
import inspect
import signal
import traceback
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch

PATIENCE = 10              # seconds that one case may take: a loop without end is a mistake, too


class Exercise:
    """What every exercise has; its oracle and its mistakes take the function's own arguments."""
    chapter = function = question = ""     # a file without .py: "ppo", or "tools/tokenizer"
    hints = ()             # three, each says more than the one before
    told = ""              # what the docstring does not say and one has to know
    assigned = ()          # take out these variables' assignments only, not the whole body
    results = ()           # names of what is returned, if it is more than one thing
    in_place = False       # whether it changes its arguments, and returns nothing
    cases = ()             # () -> lists of arguments, the smallest first
    mistakes = ()          # (name, what it means, one or several ways to make it: functions)

    def run(function, *args):
        """What is compared: the function's result, in most exercises. (Called on the class.)"""
        return function(*args)

    def close(got, expected):
        """Whether two results are the same."""
        return same(got, expected)

    @classmethod
    def name(cls):
        """As it is typed: "gae", "last"."""
        return cls.function.split(".")[-1]


class Raised(NamedTuple):
    """In a result's place: the exception that came instead."""
    kind: str
    text: str
    line: int | None       # of the chapter


class Verdict(NamedTuple):
    """What is known of an answer. rows, expected, got: of the smallest case that differs."""
    state: str             # solved, empty, wrong, or broken (it raises)
    rows: list = ()        # (name, text) of its arguments
    expected: object = None
    got: object = None
    mistakes: tuple = ()   # (name, what it means) of those that explain it,
    how: str = ""          # and what of the answer they explain: "this is what comes of"


class Told(Exception):
    """What is wrong with an answer, in words: nothing needs to be compared."""


class NotEnded(Told):
    """It ran for PATIENCE seconds."""


TOLD = Told.__name__, NotEnded.__name__


@contextlib.contextmanager
def limited():
    """Raise NotEnded after PATIENCE seconds, where the system can (not on Windows)."""
    def stop(*_):
        raise NotEnded(f"no answer within {PATIENCE} seconds: a loop without end?")
    if not hasattr(signal, "setitimer"):
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def called(exercise, function, args):
    """What a function returns, by name if it has several parts. Raises: Told when that is not all
    there, or an argument is no longer what it was."""
    before = rows_of_all(exercise, args)
    result = function(*args)
    if result is None and not exercise.in_place:
        raise Told("nothing is returned: a `return` is missing")
    changed = [row[0] for row in rows_of_all(exercise, args) if row not in before]
    if changed and not exercise.in_place:
        raise Told(f"`{changed[0]}` was changed: it is needed later. Compute a new one")
    if not exercise.results:
        return result
    if not isinstance(result, list | tuple) or len(result) != len(exercise.results):
        raise Told(f"to be returned, in this order: {', '.join(exercise.results)}")
    return dict(zip(exercise.results, result, strict=True))


def attempt(exercise, function, args, path=None):
    """The result on one case; what it raises becomes a Raised. path: of the student's chapter."""
    function = getattr(function, "fget", function)               # of a property

    @functools.wraps(function)
    def watched(*some):
        return called(exercise, function, some)
    try:
        with limited():
            return exercise.run(watched, *copy.deepcopy(args))
    except Exception as error:                 # whatever a student's code may do
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
        return Raised(type(error).__name__, str(error), lines[-1] if lines else None)


def same(a, b):
    """Whether two results are equal up to rounding: numbers, tensors, and what holds them."""
    if isinstance(a, Raised) or isinstance(b, Raised):       # b's text may be left open
        return type(a) is type(b) and a.kind == b.kind and b.text in ("", a.text)
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and same(list(a.values()), list(b.values()))
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    arrays = torch.Tensor, np.ndarray, np.generic, int, float
    if isinstance(a, arrays) and isinstance(b, arrays):
        a, b = (torch.as_tensor(x).detach().double() for x in (a, b))
        return a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)
    return type(a) is type(b) and a == b


def first_part(result):
    """The main part of a result with names."""
    return next(iter(result.values())) if isinstance(result, dict) else result


@functools.cache
def results_of_mistakes(exercise):
    """[(name, what it means, the result on each case)] of every way to make a mistake."""
    return [(name, meaning, [attempt(exercise, wrong, args) for args in exercise.cases()])
            for name, meaning, *ways in exercise.mistakes for wrong in ways]


def explanations(exercise, answers, expected, shown):
    """The mistakes, (name, what it means), that give what the student's answers give, and how: all
    of it on each case; if none does, the main part on each; else the same on the shown case alone.
    (One that gives what is right explains nothing.)"""
    main = f"`got.{next(iter(expected[shown]))}`" if isinstance(expected[shown], dict) else "it"
    for cases, where, this in (range(len(answers)), "", "this"), ([shown], "on this case ", "it"):
        for part, what in (lambda result: result, this), (first_part, main):
            found = {}
            for name, meaning, given in results_of_mistakes(exercise):
                three = [[part(x[i]) for x in (answers, given, expected)] for i in cases]
                if (all(exercise.close(answer, seen) for answer, seen, _ in three)
                        and not all(exercise.close(seen, right) for _, seen, right in three)):
                    found.setdefault(name, meaning)
            if found:
                return tuple(found.items()), f"{where}{what} is what comes of"
    return (), ""


def judge(exercise, function, path=None):
    """The Verdict on a function. path: of its chapter, to name lines."""
    torch.set_num_threads(1)                   # for so few numbers, more would only wait
    cases, answers = exercise.cases(), []
    for args in cases:
        answers.append(attempt(exercise, function, args, path))
        if getattr(answers[-1], "kind", "") == "NotImplementedError":
            return Verdict("empty")
        if getattr(answers[-1], "kind", "") == "NotEnded":       # nobody waits for that twice
            answers += answers[-1:] * (len(cases) - len(answers))
            break
    expected = [attempt(exercise, exercise.oracle, args) for args in cases]
    for i, (args, got, right) in enumerate(zip(cases, answers, expected, strict=True)):
        if not exercise.close(got, right):
            state = "broken" if isinstance(got, Raised) else "wrong"
            return Verdict(state, rows_of_all(exercise, args), right, got,
                           *explanations(exercise, answers, expected, i))
    return Verdict("solved")


# ---------------------------------------------------------------------------------- for the screen

def show(value):
    """A value in one line, its numbers with four digits; just below 1 with eight, not as 1."""
    if isinstance(value, torch.Tensor | np.ndarray):
        return show(value.tolist())
    if isinstance(value, bool | None) or not isinstance(value, float | np.floating):
        if isinstance(value, str):
            return value
        if isinstance(value, Raised) and value.kind in TOLD:
            return value.text
        if isinstance(value, Raised):
            return f"{value.kind}: {value.text}" + (f", line {value.line}" if value.line else "")
        if isinstance(value, dict):
            return ", ".join(f"{name} {show(item)}" for name, item in value.items())
        if isinstance(value, list | tuple):
            ends = "[]" if isinstance(value, list) else "()"
            return ends[0] + ", ".join(map(show, value)) + ends[1]
        if isinstance(value, SimpleNamespace):
            return show(vars(value))
        return repr(value)
    return f"{value:.{8 if 1 - 1e-6 < value < 1 else 4}g}"


def rows_of(name, value):
    """(name, text) lines that show a value; of one with named parts, a line for each."""
    parts = vars(value) if isinstance(value, SimpleNamespace) else value
    if isinstance(parts, dict):
        return [(f"{name}.{part}", show(item)) for part, item in parts.items()
                if not callable(item)]
    return [(name, show(value))]


def rows_of_all(exercise, args):
    """The rows of all arguments, which have the oracle's names."""
    names = inspect.signature(exercise.oracle).parameters
    return [row for pair in zip(names, args, strict=False) for row in rows_of(*pair)]


# -------------------------------------------------------------------------------- a network by hand

class ByHand:
    """A network so small that it can be worked out by hand, for exercises that need one.

        x[t] = the sum, over columns s up to t, of weight[token s] * (s + 1)
        scalar[t] = x[t]        logits[t, v] = sin(x[t] * (v + 1))

    Padding has a weight, too: a number that is read there differs from the right one.
    """
    def __init__(self, n_vocab, head="lm"):
        self.weight = torch.sin(torch.arange(n_vocab + 1) + 1.0).requires_grad_()
        self.config = SimpleNamespace(n_vocab=n_vocab, head=head, context=64)
        self.wte = SimpleNamespace(weight=self.weight)

    def __call__(self, tokens, at=None):
        """tokens: (B, T), at: (B, R) -> (B, R, V), or (B, R) of a scalar one."""
        x = (self.weight[tokens] * (torch.arange(tokens.shape[1]) + 1)).cumsum(1)        # (B, T)
        if at is not None:
            x = x.gather(1, at)                                                          # (B, R)
        if self.config.head == "scalar":
            return x
        return torch.sin(x[..., None] * (torch.arange(self.config.n_vocab) + 1))         # (B, R, V)

    def __deepcopy__(self, memo):
        return ByHand(self.config.n_vocab, self.config.head)

    def __repr__(self):
        return f"by hand: {self.config.head} head, {self.config.n_vocab} tokens"
