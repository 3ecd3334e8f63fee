# `make book` and `make test` are all a newcomer needs; each sets up what it uses, once.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
export HF_HUB_OFFLINE ?= 1

.PHONY: book book-all serve test check bench clean help

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 10

book: $(STAMP)  ## run every chapter, then build the book into _build/html
	@$(BIN)/fusionlib book

EMBEDDED := tiny-clip tiny-clip-lora tiny-clip-l-lora tiny-gpt2 tiny-t5 tiny-t5-lora tiny-nyu
book-all: $(STAMP)  ## every method's chapter on every embedded suite, with pages of their own
	@$(BIN)/fusionlib book --params $(EMBEDDED)

serve: book  ## the same, then serve it on this machine
	@$(BIN)/fusionlib book --no-run --serve

test: $(STAMP)  ## the whole test suite, the book and the browser included
	@$(BIN)/python -m pytest

check: $(STAMP)  ## format, lint, types
	@$(BIN)/pip install --quiet -c constraints.txt -e ".[dev]"
	@$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/pyright

bench: $(STAMP)  ## how long merging takes, against the speed at which this machine copies memory
	@$(BIN)/python benchmarks/merge_speed.py

clean:  ## remove what was built; fine-tuned models stay in the user's cache
	rm -rf _build

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing into .venv (a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	@touch $@
