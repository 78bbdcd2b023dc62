# Everything here is one line over a console script; `course --help` lists what the scripts can do besides.
#   make lab     set up, fetch the model, open JupyterLab on chapter 00 (LAB_ARGS="--no-browser --port 8999" is passed on)
#   make test    the same set-up, then every proof and test
#   make quick   what to run before a commit; it says what it leaves out
#   make lint    linter, format, types, notebooks built from their texts
# Another interpreter: make lab PYTHON=python3.12 (3.11 to 3.13; asked only when there is no .venv yet).

PYTHON ?= python3
LAB_ARGS ?=
BIN := $(CURDIR)/.venv/bin
COURSE := $(BIN)/course

.PHONY: lab test quick environment model build execute bench browser lint doctor clean

lab: model ; @PATH="$(BIN):$$PATH" $(BIN)/jupyter lab $(LAB_ARGS) chapters/00_start_here.ipynb
test: model ; $(COURSE) dev && $(BIN)/python -m pytest -n auto
quick: model lint ; $(COURSE) dev --changed && $(BIN)/python -m pytest -n auto -m "not slow and not browser and not published" \
	&& echo "Left out: chapters without changes, slow tests, the browser, the hub's published figures (make test, make browser)."
environment: ; @$(PYTHON) bootstrap.py
model: environment ; @$(COURSE) model
build: environment ; $(COURSE) build
execute: model ; $(COURSE) execute
bench: model ; $(COURSE) bench
browser: model ; $(BIN)/pip install --quiet --constraint requirements.lock playwright && $(BIN)/python -m pytest -m browser
lint: environment ; $(BIN)/ruff check . && $(BIN)/ruff format --check --quiet . && $(BIN)/mypy && $(COURSE) build --check
doctor: environment ; @$(COURSE) doctor
clean: ; rm -rf .venv .venv.lock
