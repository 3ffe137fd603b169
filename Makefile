# make quick       three minutes: toy posts, from nothing to a report with wide intervals (SEED=1)
# make demo        five minutes: the same with the numbers of the README (SEED=1)
# make rounds      perhaps ten minutes: the paper's outer loop, sample, label, reward, ppo, ROUNDS=3 times
# make figures     an hour: the paper's figures in miniature (SEEDS=1 JOBS=2)
# make test        five minutes: the tests; as on a processor without AVX-512: KERNELS=avx2, without
#                  AVX: KERNELS=default
# make check-gpu   two minutes: to run before paying for a night (GPUS=8 SIZE=1.3b PARALLEL=fsdp)
# make gpu-proof   seven minutes on one GPU: all that only a GPU can show (DEVICE=cpu SIZE=toy: here)
# make clean       forget the runs and data of quick and demo; .venv stays
#
# Minutes of two new cores, once .venv is made, which takes one or two. The stages of the first three,
# and when each is done, stand in tools/demo.py.

SEED ?= 0
PYTHON ?= python3

PY = .venv/bin/python
READY = .venv/ready
.DELETE_ON_ERROR:
.PHONY: help quick demo rounds figures test check-gpu gpu-proof clean

help:
	@sed -n '/^#$$/q; s/^# //p' Makefile

# Of these tools/demo.py has the usual values: RUN, the folder of the networks; DATA, of the posts;
# NETWORK, their size; PAIRS to label, in all rounds; POSTS to judge on. Which pairs later rounds ask
# about: BY=uncertainty, those of which the reward model is least sure.
ROUNDS ?= 3
BY ?= random

ASKED = $(if $(RUN),--run $(RUN)) $(if $(DATA),--data $(DATA)) $(if $(NETWORK),--network $(NETWORK)) \
        $(if $(PAIRS),--pairs $(PAIRS)) $(if $(POSTS),--posts $(POSTS))

quick: ASKED += --quick
rounds: ASKED += --rounds $(ROUNDS) --by $(BY)
quick demo rounds: $(READY)
	@$(PY) -m tools.demo --seed $(SEED) $(strip $(ASKED))

# Other kernels of torch, oneDNN and MKL: other roundings, as on somebody else's processor.
KERNELS ?=
TESTS ?=
test: $(READY)
	$(if $(KERNELS),ATEN_CPU_CAPABILITY=$(KERNELS) MKL_CBWR=COMPATIBLE \
	  ONEDNN_MAX_CPU_ISA=$(if $(filter avx2,$(KERNELS)),AVX2,SSE41)) $(PY) -m pytest -q -n 2 $(TESTS)

GPUS ?= 1
SIZE ?= gpt2
PARALLEL ?= ddp
check-gpu: $(READY)
	$(PY) -m torch.distributed.run --standalone --nproc_per_node=$(GPUS) tests/check_gpu.py \
	  --size $(SIZE) --twin $(if $(filter toy laptop,$(SIZE)),$(SIZE),gpt2) --parallel $(PARALLEL)

# On a machine that has torch already: python tests/gpu_proof.py
DEVICE ?= cuda
gpu-proof: $(READY)
	$(PY) tests/gpu_proof.py --device $(DEVICE) --size $(SIZE) --out gpu.json

clean:
	rm -rf runs/demo-[0-9]* data/toy-[0-9]* runs/quick-[0-9]* data/quick-[0-9]*
	@for link in runs/demo data/toy; do test ! -L $$link || rm $$link; done

$(READY): requirements.txt requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: Python 3.11 or newer is needed: make PYTHON=/path/to/python3" >&2; exit 2; }
	@$(PYTHON) -m venv .venv || \
	  { echo "error: python3 -m venv does not work here: install it (Debian: apt install python3-venv)" >&2; exit 2; }
	@echo "installing torch, numpy, tiktoken, tqdm, matplotlib, pytest into .venv (once)"
	@$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt || \
	  { echo "error: the packages of requirements-dev.txt could not be installed: is there a network?" >&2; exit 2; }
	@touch $@

# A list of runs of its own, each done once: `python -m tools.figures sweep --list` shows them.
SEEDS ?= 1
JOBS ?= 2

figures: $(READY)
	$(PY) -m tools.figures sweep --out runs/figures --seeds $(SEEDS) --jobs $(JOBS)
