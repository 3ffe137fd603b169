"""The plumbing: what every chapter stands on, and nothing from the paper.

These fifteen names are all that the chapters use of it:

    Problem          a mistake the user can repair, told in one line
    flag             a field of a script's Config: a command-line flag
    Machine          the flags that say on what to compute
    Common           the flags of every training script
    launch           do a script's work: flags, processes, errors in one line
    ALONE            the World of one process; under torchrun there are several
    generator        random numbers, a function of (seed, purpose, step, row)
    accumulate       cut a batch into micro-batches, whose gradients add up
    adam             AdamW for some networks
    optimizer_step   clip, step, clear the gradients
    Run              a training run's folder, its log, states to come back to
    config_of        the config.json of a stage
    read_network     a network's shape and weights, from a stage's folder
    read_records     JSON lines, each checked against an example of its shape
    write            a file, whole or not at all

A World is what a script's work gets from `launch`: rank, size, device, bf16; share, gather,
merge (rows), sum, max (numbers) over all processes; mixed (arithmetic), bar (progress); and, for a
network, allocate, set, load (weights), parallelize (training), gathered (all weights).
"""
from runtime.files import config_of, read_network, read_records, write
from runtime.flags import Common, Machine, Problem, flag
from runtime.run import Run
from runtime.steps import accumulate, adam, generator, optimizer_step
from runtime.world import ALONE, launch
