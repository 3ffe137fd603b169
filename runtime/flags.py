"""Flags and mistakes: one frozen dataclass a script; defaults < --preset < what was typed."""
import argparse
import dataclasses
import difflib
import math
import os
import pathlib
import re
import shlex
import sys
import traceback


class Problem(Exception):
    """Something the user can mend: what, where, what to do, in one line."""


class Diverged(Problem):
    """A number that is not finite ended a run; its log keeps the step and the message."""

    def __init__(self, step, message):
        super().__init__(f"step {step}: {message}")
        self.step = step


ENTERED = []         # whether `entry` is at work already: an inner one leaves errors to the outer


def entry(main):
    """Run a script's `main`; what the user can mend becomes one line on stderr and exit code 2.

    That is a Problem, and whatever disk or memory refuse. With --debug among the arguments the
    place in the code is shown above that line.
    """
    if ENTERED:
        main()
        return
    ENTERED.append(main)
    debug, sys.argv = "--debug" in sys.argv, [word for word in sys.argv if word != "--debug"]
    who = f"rank {os.environ.get('RANK')}: " if int(os.environ.get("WORLD_SIZE", 1)) > 1 else ""
    if hasattr(sys.stdout, "reconfigure"):        # a terminal without emoji shows their numbers
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        main()
    except BrokenPipeError:                       # `python sample.py ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except (Problem, OSError, MemoryError, RuntimeError) as error:
        told = in_one_line(error)
        if told is None:
            raise
        if debug:
            traceback.print_exc()
        print(f"{who}error: {told}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        raise SystemExit(130) from None
    finally:
        ENTERED.clear()


def in_one_line(error):
    """What to tell the user of an error; None when it is none of theirs. Texts of their files may
    stand in it: what would move a terminal's cursor becomes a blank."""
    told = str(error)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and re.search(
            "can't allocate memory|out of memory", told)):
        told = ("the memory is full: lower --micro-batch or --rollout-batch where there are, or "
                f"take a smaller network ({told})")
    elif isinstance(error, OSError):
        told = (f"{error.filename or 'a file or connection'}: {error.strerror or told}: check that "
                "it is there, may be used, and that the disk has room")
    elif not isinstance(error, Problem):
        return None
    return "".join(c if c.isprintable() else " " for c in told[:1000])


def first_line(error):
    """What an error says before it shows the place in the code."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def flag(default, help, choices=None, least=None, what=None):
    """A dataclass field that is also a command-line flag; its type is the field's.

    default: ... when it has to be typed. choices: the values that it may have. least: the
    smallest that means something (None: 0 for a number). what: in --help; TEXT is read by the rule
    for every text from outside, of a TEXT FILE the flag's value is the text; a NEW FILE or NEW DIR
    must not be there yet.
    """
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices,
                                                        "least": least, "what": what})


@dataclasses.dataclass(frozen=True)
class Machine:
    """The flags that say on what a script computes."""
    device: str = flag("auto", "auto, cpu, cuda or mps")
    precision: str = flag("auto", "arithmetic; auto: bf16 on CUDA, fp32 elsewhere",
                          choices=("auto", "bf16", "fp32"))
    parallel: str = flag("ddp", "under torchrun: ddp, every process holds whole networks; fsdp, "
                                "each holds its share of every weight", choices=("ddp", "fsdp"))


@dataclasses.dataclass(frozen=True)
class Common(Machine):
    """The flags that every training script has."""
    out: str = flag(..., "this run's own folder: config.json, model.pt, log.jsonl, state/",
                    what="DIR")
    resume: bool = flag(False, "go on where --out stopped (or start, when there is nothing yet)")
    seed: int = flag(0, "every random choice is a function of this number", least=-math.inf)
    compile: bool = flag(False, "torch.compile the networks (slow first steps, faster later)")
    checkpointing: bool = flag(False, "compute each layer's inside twice rather than remember it: "
                                      "a third slower, far less memory")
    fill: bool = flag(False, "put spaces before shorter posts, --query-length tokens in all, as "
                             "the paper's code does; a network that learned so goes on so anyway")
    save_every: int = flag(200, "steps between saved training states; the last two are kept",
                           least=1)


class Parser(argparse.ArgumentParser):
    """argparse that answers in one line, with the nearest flag to one that is misspelt."""

    def error(self, message):
        """Raise a Problem, not SystemExit."""
        near = ""
        if wrong := re.search(r"unrecognized arguments: (--[\w-]+)", message):
            known = [name for action in self._actions for name in action.option_strings]
            found = difflib.get_close_matches(wrong[1], known, 1)
            near = f"did you mean {found[0]}? " if found else ""
        raise Problem(f"{message} ({near}--help lists every flag)")


def parse(config_class, presets, argv, doc, by=None):
    """Flags from the command line: defaults < preset < typed.

    presets: name -> {flag: value}; with `by`, name -> {value of flag `by`: {flag: value}}.
    Returns: config_class, frozen. Raises: Problem for an unknown flag, preset, choice or value.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset")
    if by:
        first.add_argument("--" + by.replace("_", "-"), dest=by)
    chosen, _ = first.parse_known_args(argv)
    preset = presets.get(chosen.preset, {})
    if by and preset:
        preset = preset.get(getattr(chosen, by) or getattr(config_class, by), {})

    parser = Parser(description=doc, allow_abbrev=False, epilog="--debug: when something goes "
                    "wrong, also show where in the code",
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    if presets:
        parser.add_argument("--preset", default=None, choices=list(presets),
                            help="a set of values; typed flags win over it")
    groups = {c: parser.add_argument_group(title) for c, title in
              ((Common, "shared by the scripts"), (config_class, "of this script"))}
    for field in dataclasses.fields(config_class):
        group = groups[Common if field.name in Common.__dataclass_fields__ else config_class]
        known, name = field.metadata, "--" + field.name.replace("_", "-")
        value = preset.get(field.name, field.default)
        default = "needed" if value is ... else f"default: {value!r}"
        options = dict(dest=field.name, default=argparse.SUPPRESS,
                       help=f"{known['help']} ({default})".replace("%", "%%"))
        if field.type is bool:
            group.add_argument(name, action="store_true", **options)
        else:
            group.add_argument(name, type=field.type, choices=known["choices"],
                               metavar=None if known["choices"] else
                               known["what"] or field.type.__name__.upper(), **options)
    typed = vars(parser.parse_args(argv))
    typed.pop("preset", None)
    cfg = config_class(**{**preset, **typed})
    for field in dataclasses.fields(config_class):
        check_value(field, getattr(cfg, field.name))
    return cfg


def check_new(path, file=False):
    """Raise a Problem where a file or folder is, before anything is made to be put in its place;
    and where a `file` cannot be written."""
    path = pathlib.Path(path)
    if path != pathlib.Path() and path.exists():
        raise Problem(f"{path} exists already: name another --out, or delete it")
    if file:
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        if not (folder.is_dir() and os.access(folder, os.W_OK)):
            raise Problem(f"{path} cannot be written, as {folder} is no folder that may be written "
                          "in: choose another place")


def check_value(field, value):
    """Raise a Problem for a flag that is missing, or a number that means nothing."""
    name, least = f"--{field.name.replace('_', '-')}", field.metadata["least"]
    if value is ...:
        raise Problem(f"{name} is missing: {field.metadata['help']}")
    if isinstance(value, str) or value is None:
        return
    if least is None:
        least = -math.inf if field.name == "seed" else 0
    if not math.isfinite(value) or value < least:
        raise Problem(f"{name} is {value}: " + (
            "it counts from 1" if least == 1 else f"a number of {least:g} or more is expected"))


def check_moved(words, moved):
    """Raise a Problem with the new spelling when a command line asks for what lives elsewhere now;
    moved: see `launch`."""
    if words[:1] and words[0] in moved:
        raise Problem(f"{words[0]} has moved: python -m {' '.join([moved[words[0]], *words[1:]])}")
    for word in words:
        tool = next((tool for name, tool in moved.items() if word.startswith(name)
                     and (name.startswith("--") or name.endswith(":"))), None)
        if tool:
            raise Problem(f"{word} has moved: python -m {tool} {shlex.join(words)}")
