# Needs python3 (with venv) and make. Every virtual environment below is made when first needed and brought up to
# date when what it was made from changed.
PYTHON ?= python3

SOURCES := pyproject.toml setup.py README.md LICENSE $(shell find engine kernels csrc -name __pycache__ -prune -o -print)

# The kernels are made for a range of Triton's versions: constraints.txt pins its lower end, this is the upper one.
NEWEST_TRITON := 3.9.0

.PHONY: demo test test-newest-triton lint wheel wheel-test sanitize emulate clean

# Train on handwritten digits, with the curves in a picture.
demo: .venv-demo/installed
	.venv-demo/bin/tilegrad train --dataset digits --plot

test: .venv-test/installed
	.venv-test/bin/pytest $(IN_PARALLEL)

# A process for each core, which takes whole files.
IN_PARALLEL := --numprocesses=auto --dist=loadfile

# All that touches Triton, under its newest version.
test-newest-triton: .venv-test/installed .triton-$(NEWEST_TRITON)/installed
	PYTHONPATH=.triton-$(NEWEST_TRITON) .venv-test/bin/pytest $(IN_PARALLEL) $(KERNEL_TESTS)

KERNEL_TESTS := tests/test_sanitizer.py tests/test_static.py tests/test_host_path.py $(wildcard tests/test_kernel_*.py)

.triton-%/installed: .venv-test/installed
	rm -rf .triton-$*
	.venv-test/bin/pip install --no-deps --target .triton-$* triton==$*
	touch $@

lint: .venv-test/installed
	.venv-test/bin/ruff check
	.venv-test/bin/ruff format --check
	.venv-test/bin/mypy -p tilegrad

# sdist, and the wheel out of the sdist for every Linux that is as old as this one: auditwheel finds out which those are.
# The CUDA kernels are in it whatever this machine has: nvcc is the one of the test environment.
wheel: .venv-test/installed
	rm -rf build dist *.egg-info
	CUDA_HOME="$$(echo $(CURDIR)/.venv-test/lib/python3*/site-packages/nvidia/cu13)" TILEGRAD_CUDA=1 \
	PIP_CONSTRAINT=constraints.txt .venv-test/bin/python -m build
	PATH="$(CURDIR)/.venv-test/bin:$$PATH" auditwheel repair --wheel-dir dist dist/*-linux_*.whl
	rm dist/*-linux_*.whl

# That wheel with the base dependencies alone, away from the repository and without a compiler; and its sdist with g++
# and no nvcc.
wheel-test: wheel
	@set -e; away=$$(mktemp -d); tools=$$PATH; trap 'PATH=$$tools; rm -rf "$$away"' EXIT; \
	unset CUDA_HOME CUDA_PATH TILEGRAD_CUDA; mkdir "$$away/tools"; \
	for tool in $(BUILD_TOOLS); do found=$$(command -v $$tool) && ln -s "$$found" "$$away/tools"; done; \
	$(PYTHON) -m venv "$$away/venv"; $(PYTHON) -m venv "$$away/without-nvcc"; \
	PATH="$$away/venv/bin" pip install --quiet --constraint constraints.txt dist/*.whl; \
	diff -r --exclude=__pycache__ --exclude=kernels --exclude="_C.*" engine "$$away"/venv/lib/python3*/site-packages/tilegrad; \
	diff -r --exclude=__pycache__ kernels "$$away"/venv/lib/python3*/site-packages/tilegrad/kernels; \
	PATH="$$away/without-nvcc/bin:$$away/tools" pip install --verbose --constraint constraints.txt dist/*.tar.gz > "$$away/log" 2>&1 \
	|| { cat "$$away/log"; exit 1; }; \
	grep "the CUDA C++ kernels are left out (nvcc is not found)" "$$away/log"; \
	cd "$$away"; export PATH=; \
	venv/bin/python -c "$$USE_THE_WHEEL"; \
	venv/bin/python -c "from tilegrad import _C; assert _C.cuda_architectures; print(_C.cuda.why_not() or 'a GPU is here')"; \
	venv/bin/tilegrad info; \
	without-nvcc/bin/python -c "from tilegrad import _C; assert not _C.cuda_architectures"; \
	without-nvcc/bin/tilegrad info

# What a C++ extension is built with: the compiler, and what it calls.
BUILD_TOOLS := cc gcc c++ g++ as ld

# The CPU kernels under the sanitizers of g++: addresses and undefined behaviour in one build, threads in another. The
# contract and random calls run on every instruction set of this machine. Not a part of .ci/run: it takes ten minutes on
# two cores.
sanitize: build/sanitize-address/installed build/sanitize-thread/installed
	$(UNDER_ADDRESS) .venv-test/bin/pytest tests/test_cpu.py tests/test_tape.py tests/test_autograd.py
	$(UNDER_THREAD) .venv-test/bin/pytest tests/test_cpu.py
	@test -n "$(INSTRUCTION_SETS)"
	@set -ex; for isa in $(INSTRUCTION_SETS); do export TILEGRAD_ISA=$$isa; \
	$(UNDER_ADDRESS) .venv-test/bin/pytest $(IN_PARALLEL) -k cpu tests/test_contract.py tests/test_promises.py; \
	$(UNDER_ADDRESS) .venv-test/bin/python tests/fuzz_cpu.py --minutes 0.5; \
	$(UNDER_THREAD) .venv-test/bin/python tests/fuzz_cpu.py --minutes 0.5; \
	done

# The CUDA C++ kernels, emulated: the contract in every order of threads and completion that the tests otherwise share out
# among them, then under AddressSanitizer. Not a part of .ci/run: it takes a quarter of an hour on two cores.
emulate: .venv-test/installed
	@set -ex; for seed in 1 2 3; do for completion in early late random; do \
	CUDA_SCHEDULE="$$seed $$completion" .venv-test/bin/pytest $(IN_PARALLEL) -k cuda $(ON_EVERY_BACKEND); \
	done; done
	$(call PRELOADED,libasan.so) ASAN_OPTIONS=detect_leaks=0 .venv-test/bin/pytest $(IN_PARALLEL) -k cuda $(ON_EVERY_BACKEND)

ON_EVERY_BACKEND := tests/test_contract.py tests/test_promises.py

INSTRUCTION_SETS = $(shell for isa in baseline avx2 avx512; do \
	TILEGRAD_ISA=$$isa .venv-test/bin/python -c "from tilegrad import cpu; print(cpu._C.isa())" 2> /dev/null; done)

# Python is not sanitized, so the sanitizer's library has to be there before it; with libstdc++, whose throws it
# watches. Nor is OpenBLAS: what its threads write, the thread sanitizer takes for races.
PRELOADED = LD_PRELOAD="$(shell g++ -print-file-name=$(1)) $(shell g++ -print-file-name=libstdc++.so)"
UNDER_ADDRESS = PYTHONPATH=$(CURDIR)/build/sanitize-address $(call PRELOADED,libasan.so) \
	ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1
UNDER_THREAD = PYTHONPATH=$(CURDIR)/build/sanitize-thread $(call PRELOADED,libtsan.so) \
	TSAN_OPTIONS="halt_on_error=1 die_after_fork=0 allocator_may_return_null=1" OPENBLAS_NUM_THREADS=1

# setuptools would take the objects of another build for its own.
build/sanitize-%/installed: .venv-test/installed $(SOURCES)
	rm -rf build/lib.* build/temp.* build/bdist.* $(@D) *.egg-info
	TILEGRAD_SANITIZE=$(SANITIZERS) .venv-test/bin/pip install --no-deps --target $(@D) .
	rm -rf build/lib.* build/temp.* build/bdist.*
	touch $@

build/sanitize-address/installed: SANITIZERS := address,undefined
build/sanitize-thread/installed: SANITIZERS := thread

# The list of sources holds the folders too, so that a deleted file counts as a change. build/ goes first, since
# setuptools would ship again whatever an earlier build left there.
# CUDA C++ kernels are compiled where there is a GPU to run them; the tests emulate them elsewhere.
ifeq ($(wildcard /dev/nvidiactl),)
.venv-%/installed: export TILEGRAD_CUDA ?= 0
endif
.venv-%/installed: $(SOURCES)
	test -x .venv-$*/bin/python || $(PYTHON) -m venv .venv-$*
	rm -rf build *.egg-info
	.venv-$*/bin/pip install '.[$*]'
	touch $@

# The tests run on pinned versions only, those of the build's own environment among them; the demo on whatever a user
# would get today.
.venv-test/installed: constraints.txt
.venv-test/installed build/sanitize-%/installed: export PIP_CONSTRAINT := constraints.txt
.venv-test/installed build/sanitize-%/installed: export PIP_BUILD_CONSTRAINT := constraints.txt

clean:
	rm -rf .venv-demo .venv-test .triton-* build dist runs *.egg-info .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find engine kernels bench tests -name __pycache__ -prune -exec rm -rf {} +

define USE_THE_WHEEL
import tilegrad
from importlib.metadata import version
from tilegrad import nn, optim

assert tilegrad.__version__ == version("tilegrad")
tilegrad.manual_seed(0)
x = tilegrad.randn(256, 2)
y = (x[:, 0] * x[:, 1] > 0).long()
model = nn.Sequential(nn.Linear(2, 32, activation="gelu"), nn.Linear(32, 2))
optimizer = optim.AdamW(model.parameters(), lr=0.02)
for step in range(200):
    loss = nn.functional.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
assert loss.item() < 0.1, loss
tilegrad.save(model.state_dict(), "model.safetensors")
model.load_state_dict(tilegrad.load("model.safetensors"))
print("trained to a loss of", loss.item())
endef
export USE_THE_WHEEL
