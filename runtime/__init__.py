"""The plumbing: what every chapter stands on, and nothing from the paper.

The chapters can be read without it. Five promises are kept:

    flags         one frozen dataclass a script; defaults < --preset < what was typed
    World         the same script alone, or as one of many processes under torchrun
    randomness    every draw is a function of (seed, purpose, step, row): nothing to be remembered
    Run           a run's folder: config.json, log.jsonl, state/ while training, model.pt at the end
    Problem       what the user can repair is said in one line, and the exit code is not 0
"""
from runtime.files import (
    BLANKS,
    LINE,
    check_new,
    config_of,
    filled,
    json_lines,
    json_of,
    lines_of,
    log_line,
    published,
    read_jsonl,
    read_network,
    read_records,
    read_text,
    replacing,
    save_tensors,
    text_of,
    typed,
    write,
    write_atomically,
    write_config,
)
from runtime.flags import (
    Common,
    Diverged,
    Machine,
    Problem,
    entry,
    flag,
    moved,
    parse,
)
from runtime.run import (
    Run,
)
from runtime.steps import (
    accumulate,
    adam,
    finest,
    generator,
    linear,
    optimizer_step,
)
from runtime.world import (
    ALONE,
    World,
    allocate,
    bar,
    bare,
    fill,
    gathered,
    join_world,
    launch,
    load_weights,
    mixed,
    parallelize,
    whole,
)
