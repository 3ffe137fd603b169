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
    """A mistake the user can repair: what, where, what to do, in one line."""


class Diverged(Problem):
    """A number that is not finite ended a run; its log keeps the step and the message."""

    def __init__(self, step, message, advice="start again in another --out with a lower --lr "
                                             "(--resume would repeat this)"):
        super().__init__(f"step {step}: {message}: {advice}")
        self.step = step


def entry(main):
    """Run a script's `main`; what the user can repair becomes one line on stderr and exit code 2:
    a Problem, and whatever disk or memory refuse. With --debug among the arguments, the place in
    the code is shown above that line."""
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


def in_one_line(error):
    """What to tell the user of an error; None when it is a bug. What would move a terminal's cursor
    becomes a blank, for texts of the user's files may stand in it."""
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


def flag(default, help, choices=None, least=None, what=None):
    """A dataclass field that is also a command-line flag; its type is the field's.

    default: ... when it has to be typed. choices: the values that it may have. least: the
    smallest number (None: 0, and any for a seed). what: the name of the value in --help. Of a TEXT
    FILE the flag's value is the text; a NEW FILE or NEW DIR must not be there yet."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices,
                                                        "least": least, "what": what})


@dataclasses.dataclass(frozen=True)
class Machine:
    """The flags that say on what a script computes."""
    device: str = flag("auto", "where to compute", choices=("auto", "cpu", "cuda", "mps"))
    precision: str = flag("auto", "arithmetic; auto: bf16 on CUDA, else fp32 (on a CPU with AMX "
                                  "bf16 pays from width 256)", choices=("auto", "bf16", "fp32"))
    parallel: str = flag("ddp", "under torchrun: ddp, every process holds whole networks; fsdp, "
                                "each holds its share of every weight", choices=("ddp", "fsdp"))


@dataclasses.dataclass(frozen=True)
class Common(Machine):
    """The flags that every training script has."""
    out: str = flag(..., "this run's own folder: config.json, model.pt, log.jsonl, state/",
                    what="DIR")
    resume: bool = flag(False, "go on where --out stopped (or start, when there is nothing yet)")
    seed: int = flag(0, "every random choice is a function of this number")
    compile: bool = flag(False, "torch.compile the networks: a minute at first; useless on CPUs")
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


def spelled(name):
    """How a field's flag is typed."""
    return "--" + name.replace("_", "-")


def parse(config_class, presets, argv, doc, by=None):
    """Flags from the command line, a config_class: defaults < preset < typed.

    presets: name -> {flag: value}; with `by`, name -> {value of flag `by`: {flag: value}}.
    Raises: Problem for an unknown flag, preset, choice or value."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ["preset", *([by] if by else [])]:       # read first, so that --help can show it
        first.add_argument(spelled(name), dest=name)
    chosen, _ = first.parse_known_args(argv)
    preset = presets.get(chosen.preset, {})
    if by and preset:
        preset = preset.get(getattr(chosen, by) or getattr(config_class, by), {})

    parser = Parser(description=doc, allow_abbrev=False, epilog="--debug: of an error, also show "
                    "where in the code", formatter_class=argparse.RawDescriptionHelpFormatter)
    if presets:
        parser.add_argument("--preset", choices=list(presets), default=argparse.SUPPRESS,
                            help="a set of values; typed flags win over it")
    shared = parser.add_argument_group("shared by the scripts")
    own = parser.add_argument_group("of this script")
    for field in dataclasses.fields(config_class):
        group = shared if field.name in Common.__dataclass_fields__ else own
        known = field.metadata
        value = preset.get(field.name, field.default)
        told = f"{known['help']} ({'needed' if value is ... else f'default: {value!r}'})"
        options = dict(dest=field.name, default=argparse.SUPPRESS, help=told.replace("%", "%%"))
        if field.type is bool:
            options["action"] = "store_true"
        elif known["choices"]:
            options |= dict(type=field.type, choices=known["choices"])
        else:
            options |= dict(type=field.type, metavar=known["what"] or field.type.__name__.upper())
        group.add_argument(spelled(field.name), **options)
    typed = vars(parser.parse_args(argv))
    typed.pop("preset", None)
    cfg = config_class(**{**preset, **typed})
    for field in dataclasses.fields(config_class):
        check_value(field, getattr(cfg, field.name))
    return cfg


def check_value(field, value):
    """Raise a Problem for a flag that is missing, or a number that means nothing."""
    name, least = spelled(field.name), field.metadata["least"]
    if value is ...:
        raise Problem(f"{name} is missing: {field.metadata['help']}")
    if least is None:
        least = -math.inf if field.name == "seed" else 0
    if isinstance(value, int | float) and not least <= value < math.inf:
        raise Problem(f"{name} is {value}: a number of {least:g} or more is expected")


def check_new(path):
    """Raise a Problem where something is already, or nothing may be put, before the work begins."""
    path = pathlib.Path(path)
    if path != pathlib.Path() and path.exists():
        raise Problem(f"{path} exists already: name another --out, or delete it")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise Problem(f"{path} cannot be written, as {folder} is no folder that may be written in: "
                      "choose another place")


def check_moved(words, moved):
    """Raise a Problem with the new spelling for a command that is now a tool's; moved: {first word,
    or "--flag", or "beginning of a value:": the tool}."""
    for name, tool in moved.items():
        command, anywhere = words[:1] == [name], name.startswith("--") or name.endswith(":")
        if command or (anywhere and any(re.match(f"(--[a-z]+=)?{name}", word) for word in words)):
            rest = words[1:] if command and not anywhere else words
            raise Problem(f"{name} has moved: python -m {shlex.join([*tool.split(), *rest])}")
