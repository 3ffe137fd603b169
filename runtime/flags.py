"""Flags and mistakes: one dataclass a script; defaults < --preset < --config < what was typed."""
import argparse
import dataclasses
import difflib
import json
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
    """Flags from the command line, a config_class: defaults < preset < config.json < typed.

    presets: name -> {flag: value}; with `by`, name -> {value of flag `by`: {flag: value}}.
    Raises: Problem for an unknown flag, preset, choice or value."""
    first = Parser(add_help=False, allow_abbrev=False)
    for name in ["preset", "config", *([by] if by else [])]:     # first, so that --help can show it
        first.add_argument(spelled(name), dest=name)
    chosen, _ = first.parse_known_args(argv)
    saved = saved_flags(chosen.config, config_class) if chosen.config else {}
    preset = presets.get(chosen.preset, {})
    if by and preset:
        preset = preset.get(getattr(chosen, by) or saved.get(by, getattr(config_class, by)), {})
    if preset and preset.keys() <= saved.keys():
        raise Problem("--config holds every flag of --preset, and would win: leave out one of them")
    before = preset | saved

    parser = Parser(description=doc, allow_abbrev=False, epilog="--debug: of an error, also show "
                    "where in the code", formatter_class=argparse.RawDescriptionHelpFormatter)
    if presets:
        parser.add_argument("--preset", choices=list(presets), default=argparse.SUPPRESS,
                            help="a set of values; --config and typed flags win over it")
    parser.add_argument("--config", metavar="FILE", default=argparse.SUPPRESS, help="a config.json "
                        "of this script: its flags, but --out and --resume, count as if typed")
    shared = parser.add_argument_group("shared by the scripts")
    own = parser.add_argument_group("of this script")
    for field in dataclasses.fields(config_class):
        group = shared if field.name in Common.__dataclass_fields__ else own
        known = field.metadata
        value = before.get(field.name, field.default)
        told = f"{known['help']} ({'needed' if value is ... else f'default: {value!r}'})"
        options = dict(dest=field.name, default=argparse.SUPPRESS, help=told.replace("%", "%%"))
        if field.type is bool:
            options["action"] = "store_true"
        else:
            named = None if known["choices"] else known["what"] or field.type.__name__.upper()
            options |= dict(type=field.type, choices=known["choices"], metavar=named)
        group.add_argument(spelled(field.name), **options)
    typed = vars(parser.parse_args(argv))
    cfg = config_class(**before | {k: typed[k] for k in typed if k not in ("preset", "config")})
    for field in dataclasses.fields(config_class):
        check_value(field, getattr(cfg, field.name))
    return cfg


def saved_flags(path, config_class):
    """The flags in a config.json, but for --out and --resume. Raises: OSError; Problem when one is
    no flag of this script, or its value none that could be typed."""
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    try:
        found = dict(json.loads(pathlib.Path(path).read_text("utf-8"))["flags"])
    except (ValueError, LookupError, TypeError, RecursionError):
        raise Problem(f"--config {path} is not as runs/demo/ppo/config.json is") from None
    for name, value in found.items():
        if name not in fields:
            raise Problem(f"--config {path}: {name!r:.40} is no flag of this script: is it another "
                          "script's file?")
        kind, choices = fields[name].type, fields[name].metadata["choices"]
        typable = type(value) is kind or (kind is float and type(value) is int)
        if not (typable and value in (choices or [value])) and value is not fields[name].default:
            raise Problem(f"--config {path}: {name} is {value!r:.40}: "
                          f"{' or '.join(choices or [kind.__name__])} is expected")
    return {name: found[name] for name in found if name not in ("out", "resume")}


def check_value(field, value):
    """Raise a Problem for a flag that is missing, or a number that means nothing."""
    name, least = spelled(field.name), field.metadata["least"]
    if value is ... or (field.default is ... and value == ""):
        raise Problem(f"{name} is missing: {field.metadata['help']} (--help lists every flag)")
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
    or "--flag": the tool}."""
    for name, tool in moved.items():
        is_flag = name.startswith("--")
        if words[:1] == [name] or (is_flag and any(word.startswith(name) for word in words)):
            rest = words if is_flag else words[1:]
            raise Problem(f"{name} has moved: python -m {shlex.join([*tool.split(), *rest])}")
