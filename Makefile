# Needs python3 (with venv) and make. Every virtual environment below is made when first needed and brought up to
# date when what it was made from changed.
PYTHON ?= python3

SOURCES := pyproject.toml setup.py README.md LICENSE $(shell find engine kernels -name __pycache__ -prune -o -print)

# The kernels are made for a range of Triton's versions: constraints.txt pins its lower end, this is the upper one.
NEWEST_TRITON := 3.9.0

.PHONY: demo test test-newest-triton lint wheel-test clean

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

# sdist, the wheel out of the sdist, and that wheel with the base dependencies alone, away from the repository.
wheel-test: .venv-test/installed
	rm -rf build dist *.egg-info
	PIP_CONSTRAINT=constraints.txt .venv-test/bin/python -m build
	@set -e; away=$$(mktemp -d); trap 'rm -rf "$$away"' EXIT; \
	$(PYTHON) -m venv "$$away/venv"; \
	"$$away/venv/bin/pip" install --quiet --constraint constraints.txt dist/*.whl; \
	diff -r --exclude=__pycache__ --exclude=kernels engine "$$away"/venv/lib/python3*/site-packages/tilegrad; \
	diff -r --exclude=__pycache__ kernels "$$away"/venv/lib/python3*/site-packages/tilegrad/kernels; \
	cd "$$away"; \
	venv/bin/python -c "$$USE_THE_WHEEL"; \
	venv/bin/tilegrad info

# The list of sources holds the folders too, so that a deleted file counts as a change. build/ goes first, since
# setuptools would ship again whatever an earlier build left there.
.venv-%/installed: $(SOURCES)
	test -x .venv-$*/bin/python || $(PYTHON) -m venv .venv-$*
	rm -rf build *.egg-info
	.venv-$*/bin/pip install '.[$*]'
	touch $@

# The tests run on pinned versions only, those of the build's own environment among them; the demo on whatever a user
# would get today.
.venv-test/installed: constraints.txt
.venv-test/installed: export PIP_CONSTRAINT := constraints.txt
.venv-test/installed: export PIP_BUILD_CONSTRAINT := constraints.txt

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
