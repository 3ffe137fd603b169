# make demo            toy posts, from nothing to a report, in some minutes     (make demo SEED=1)
# make figures         the paper's figures in miniature, in an hour or more: SEEDS=1 JOBS=2
# make rounds          the paper's outer loop: sample -> label -> reward -> ppo, ROUNDS=3 times
# make test            the tests; as on a processor without AVX-512: KERNELS=avx2, without AVX: KERNELS=default
# make check-gpu       two minutes before paying for a night: GPUS=8 SIZE=1.3b PARALLEL=fsdp
# make gpu-proof       seven minutes on one GPU: everything that only a GPU can show; DEVICE=cpu SIZE=toy: here
# make clean           forget the demo's runs and data; .venv stays
#
# Every stage is a file that the next one needs: what is finished is not done again, and what was
# interrupted goes on where it stopped.

SEED ?= 0
DATA ?= data/toy-$(SEED)
RUN ?= runs/demo-$(SEED)
PYTHON ?= python3
# What the demo trains; a shrunk one types less here.
NETWORK ?= toy
PAIRS ?= 4000
POSTS ?= 1000

PY = .venv/bin/python
READY = .venv/ready
.DELETE_ON_ERROR:
.PHONY: demo figures rounds test check-gpu gpu-proof clean here

demo: here $(RUN)/report/report.html
	@echo
	@echo "The whole report: $(RUN)/report/report.md.  Now try:"
	@echo "    $(PY) sample.py --policy runs/demo/ppo"

# runs/demo and data/toy always name the seed that was asked for last.
here:
	@for d in runs/demo data/toy; do [ -L $$d ] || [ ! -e $$d ] || \
	  { echo "error: $$d is in the way of make's own link: move it elsewhere" >&2; exit 2; }; done
	@mkdir -p runs data
	@ln -sfn demo-$(SEED) runs/demo
	@ln -sfn toy-$(SEED) data/toy

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
	rm -rf runs/demo* data/toy*

$(READY): requirements.txt requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: Python 3.11 or newer is needed: make PYTHON=/path/to/python3" >&2; exit 2; }
	@$(PYTHON) -m venv .venv || \
	  { echo "error: python3 -m venv does not work here: install it (Debian: apt install python3-venv)" >&2; exit 2; }
	@echo "installing torch, numpy, tiktoken, tqdm, matplotlib, pytest into .venv (once)"
	@$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt || \
	  { echo "error: the packages of requirements-dev.txt could not be installed: is there a network?" >&2; exit 2; }
	@touch $@

$(DATA)/train.jsonl: | $(READY)
	$(PY) toy.py --out $(DATA) --seed $(SEED)

$(DATA)/tokenizer.tiktoken: $(DATA)/train.jsonl
	$(PY) -m tools.tokenizer --data $(DATA) --vocab 1024

$(RUN)/pretrained/model.pt: $(DATA)/tokenizer.tiktoken
	$(PY) sft.py --preset toy --size $(NETWORK) --data $(DATA) --loss-on all --seed $(SEED) --out $(RUN)/pretrained --resume

$(RUN)/supervised/model.pt: $(RUN)/pretrained/model.pt
	$(PY) sft.py --preset toy --data $(DATA) --loss-on summary --init $(RUN)/pretrained \
	  --seed $(SEED) --out $(RUN)/supervised --resume

$(RUN)/pairs.jsonl: $(RUN)/supervised/model.pt
	@rm -f $@
	$(PY) sample.py --policy $(RUN)/supervised --data $(DATA) --pairs $(PAIRS) --with-reference 0.5 --seed $(SEED) --out $@

$(RUN)/comparisons.jsonl: $(RUN)/pairs.jsonl
	@rm -f $@
	$(PY) label.py simulate --pairs $< --labels 3 --seed $(SEED) --out $@

$(RUN)/reward/model.pt: $(RUN)/comparisons.jsonl
	$(PY) reward.py --preset toy --init $(RUN)/supervised --comparisons $< --seed $(SEED) \
	  --out $(RUN)/reward --resume

$(RUN)/ppo/model.pt: $(RUN)/reward/model.pt
	$(PY) ppo.py --preset toy --policy $(RUN)/supervised --reward $(RUN)/reward --data $(DATA) \
	  --seed $(SEED) --out $(RUN)/ppo --resume

$(RUN)/report/report.json: $(RUN)/ppo/model.pt
	$(PY) evaluate.py --run $(RUN) --data $(DATA) --posts $(POSTS) --seed $(SEED) --out $(RUN)/report

%/report/report.html: %/report/report.json
	$(PY) -m tools.report --run $* --out $(@D)

# A list of runs of its own, each done once: `python -m tools.figures sweep --list` shows them.
SEEDS ?= 1
JOBS ?= 2

figures: $(READY)
	$(PY) -m tools.figures sweep --out runs/figures --seeds $(SEEDS) --jobs $(JOBS)

# The outer loop (section 3.1). Every round asks about summaries of the newest policy, of the best of 4
# of its own, of the supervised one and of the authors (BY=uncertainty: about those pairs that the reward
# model is least sure of); a new reward model learns from *all* labels so far, and PPO starts again from
# the supervised policy. PAIRS counts all rounds' pairs.
ROUNDS ?= 3
LOOP ?= $(RUN)/rounds-$(ROUNDS)
BY ?= random
comma = ,
space = $(subst ,, )

rounds: here $(LOOP)/$(ROUNDS)/report/report.html

define round   # $(1): this round; $(2): the one before, none for the first
$(LOOP)/$(1)/pairs.jsonl: $(RUN)/supervised/model.pt $(if $(2),$(LOOP)/$(2)/ppo/model.pt)
	@mkdir -p $$(@D) && ln -sfn ../../supervised $$(@D)/supervised && ln -sfn ../../pretrained $$(@D)/pretrained
	@rm -f $$@
	$(PY) $(if $(2),-m tools.pairs,sample.py) --policy $(if $(2),$(LOOP)/$(2)/ppo --others $(RUN)/supervised \
	  --reward $(LOOP)/$(2)/reward --by $(BY) --best-of 4,$(RUN)/supervised) --data $(DATA) \
	  --pairs $$$$(($(PAIRS) / $(ROUNDS))) --with-reference $(if $(2),0.2,0.5) --seed $(SEED)$(1) --out $$@

$(LOOP)/$(1)/comparisons.jsonl: $(LOOP)/$(1)/pairs.jsonl
	@rm -f $$@
	$(PY) label.py simulate --pairs $$< --labels 3 --seed $(SEED)$(1) --out $$@

$(LOOP)/$(1)/reward/model.pt: $(LOOP)/$(1)/comparisons.jsonl
	$(PY) reward.py --preset toy --init $(RUN)/supervised --seed $(SEED) --out $$(@D) --resume \
	  --comparisons $(subst $(space),$(comma),$(patsubst %,$(LOOP)/%/comparisons.jsonl,$(shell seq $(1))))

$(LOOP)/$(1)/ppo/model.pt: $(LOOP)/$(1)/reward/model.pt
	$(PY) ppo.py --preset toy --policy $(RUN)/supervised --reward $(LOOP)/$(1)/reward --data $(DATA) \
	  --seed $(SEED) --out $$(@D) --resume

$(LOOP)/$(1)/report/report.json: $(LOOP)/$(1)/ppo/model.pt
	$(PY) evaluate.py --run $(LOOP)/$(1) --data $(DATA) --posts $(POSTS) --seed $(SEED) --out $$(@D)
endef
$(foreach n,$(shell seq $(ROUNDS)),$(eval $(call round,$(n),$(filter-out 0,$(shell expr $(n) - 1)))))
