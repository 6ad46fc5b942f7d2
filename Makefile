# Every target does its own set-up: a fresh machine needs Python 3.11 and this file.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: venv quickstart test test-slow test-spark lint clean

venv: $(VENV)/.installed

$(VENV)/.installed: setup.cfg constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,serving,hdf5,ann,stores]'
	touch $@

# A model change, start to finish, on a data set that needs no download.
quickstart: venv
	$(BIN)/python -m fct_tf.study --config=configs/quickstart.py --workdir=runs/glyphs

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# A process per core, of one thread; the tests of a module stay together, as they share what they set
# up.
PYTEST := $(BIN)/pytest --numprocesses=auto --dist=loadscope
ONE_THREAD := OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 TF_NUM_INTRAOP_THREADS=1

test: lint
	$(ONE_THREAD) $(PYTEST)

# What computes with floating-point numbers, once more as on a processor without AVX-512 and with
# all threads: sums are then taken in another order. bfloat16 apart: TensorFlow asks the processor
# itself whether it can do that, and oneDNN, held back, refuses.
NUMERICAL := augment backbone backfilling calibration closed_form compatibility corrected evaluate \
	exact fastfill fusion in_parts kernel linear losses margins metrics optimizers policies priority \
	transformation_model uncertainty_by_fifths verdict verification
OTHER_PROCESSOR := OPENBLAS_CORETYPE=Haswell ONEDNN_MAX_CPU_ISA=AVX2

test-slow: venv
	$(ONE_THREAD) $(PYTEST) -m "slow and not spark"
	$(OTHER_PROCESSOR) $(PYTEST) -k "not bfloat16" $(NUMERICAL:%=tests/*/test_%.py)

# What needs pyspark and Java. One test after the other: a cluster takes all cores.
SPARK_TESTS := spark
test-spark: $(VENV)/.spark
	@java -version >/dev/null 2>&1 || { echo "make test-spark: no Java here;" \
		"apt-get install openjdk-17-jre-headless" >&2; exit 2; }
	$(BIN)/pytest -m "$(SPARK_TESTS)"

$(VENV)/.spark: $(VENV)/.installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[spark]'
	touch $@

clean:
	rm -rf $(VENV) runs
