# make demo     sample pictures in a real ComfyUI with and without the pack; writes demo-output/
# make lint     style, types, and the checks of pages, locales and what is published (tests/files)
# make test     style and pages, then types and the tests side by side; of the models in tests/comfy/zoo a selection that shows every kind of family record
# make test-all the same with all models of the zoo, and more combinations of what is tested; CI runs this
# Both set everything up first (.work/). To use what is there already, or another ComfyUI:
#   make test COMFYUI=0.27.0        a version that tools/pins.toml lists
#   make test COMFYUI_PATH=... PYTHON=...
#   make test FRONTEND=1.58.1       the browser tests alone, on another front end than the one that ComfyUI pins
# ARGS=... is passed on: make test ARGS="-k door"

BOOT = $(shell for p in python3.11 python3 /usr/bin/python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
# tools/setup.py makes all ready, then runs the right Python with its arguments
RUN = $(or $(BOOT),$(error Python 3.11 is needed and was not found (Debian: apt-get install python3.11 python3.11-venv))) \
	'$(CURDIR)/tools/setup.py'

.PHONY: demo test test-all pytest lint style types files format setup train check costs help-pages help-pictures bench-carry bench-session bench-people bench-meancache bench-presets bench-overhead bench-quality bench-blocks bench-memo bench-decibels bench-gpu families screenshots validate clean

demo:
	$(RUN) demo/run.py $(ARGS)

# of all tests only those in a browser see a front end
test: TESTS = $(if $(FRONTEND),--thorough tests/browser)
test:
	+@$(MAKE) --no-print-directory -j 2 --output-sync style files
	+@$(MAKE) --no-print-directory -j 2 types pytest THOROUGH='$(THOROUGH)' TESTS='$(TESTS)'

# two at a time, of one thread each: with more threads than cores PyTorch's wait for one another
pytest:
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(RUN) -m pytest -n 2 --dist worksteal --ignore tests/files $(THOROUGH) $(TESTS) $(ARGS)

test-all: THOROUGH = --thorough
test-all: test

lint: style types files

style:
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) tools/javascript.py

types:
	$(RUN) -m mypy

files:
	$(RUN) -m pytest -q tests/files

format:
	$(RUN) -m ruff check --fix
	$(RUN) -m ruff format
	$(RUN) tools/javascript.py --fix

setup:
	$(RUN)

# The demo's models: goes on from the state in .work/training/ or the models in demo/models/, writes to .work/training/.
#   make train ARGS="unet --minutes 30"    one of flux, flux_low, nextdit, unet
TRAIN = nice -n 19 env OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(RUN) demo/training
train:
ifdef ARGS
	$(TRAIN)/train.py $(ARGS)
else
	$(TRAIN)/train_vae.py --minutes 15
	$(TRAIN)/train.py flux --minutes 90
	$(TRAIN)/train.py flux_low --minutes 20
	$(TRAIN)/train.py nextdit --minutes 60
	$(TRAIN)/train.py unet --minutes 60
endif

# do the models in .work/training/ draw what their prompts say; and MeanCache's default costs, measured on the demo's model
check:
	$(RUN) demo/training/check.py $(ARGS)

costs:
	$(RUN) demo/training/costs.py --out '$(CURDIR)/core/step/calibration/shipped_costs.json' $(ARGS)

# costs recorded with other settings against the run's own; and a session of 30 changes, of which none may cost a run in full
bench-carry:
	$(RUN) bench/carry.py $(ARGS)

bench-session:
	$(RUN) bench/session.py $(ARGS)

# the settings that people sample with: evaluations saved at 40 dB; an hour on one core
bench-people:
	$(RUN) bench/people.py $(ARGS)

bench-meancache:
	$(RUN) bench/meancache.py $(ARGS)

bench-presets:
	$(RUN) bench/presets.py $(ARGS)

bench-overhead:
	$(RUN) bench/overhead.py $(ARGS)

# every method, plain sampling and ComfyUI's own caches on three models: hours, and goes on where it was stopped
bench-quality:
	$(RUN) bench/quality.py $(ARGS)

# the methods that work inside the model: also how much of its work they do, and what that makes them faster
bench-blocks:
	$(RUN) bench/blocks.py $(ARGS)

# the memo in a real server, with restarts: a quarter of an hour on one core; ARGS="--size 256" for a quick look
bench-memo:
	$(RUN) bench/memo.py $(ARGS)

# on a machine with an NVIDIA GPU, six minutes: what the tests' pretend device stands for; elsewhere it says so and ends
bench-gpu:
	$(RUN) bench/gpu.py $(ARGS)

# what a predicted error comes to in the picture; ARGS="--ask 30 40": whether Step Cache (Auto) keeps what is asked of it
bench-decibels:
	$(RUN) bench/decibels.py $(ARGS)

# which model classes they work on; ARGS=--readme writes the table of docs/families.md
families:
	@$(RUN) tools/families.py $(ARGS)

# the tables of the help pages and the English texts, from the nodes' records; and the pages' pictures, from runs of the demo's model
help-pages:
	$(RUN) tools/help.py

help-pictures:
	$(RUN) tools/pictures.py

# every node, in both themes and both ways of drawing nodes: demo-output/screenshots/
screenshots:
	$(RUN) -m pytest -q tests/browser/test_screenshots.py

# the registry's own checks of what would be published
validate:
	$(RUN) tools/validate.py

clean:
	rm -rf .work .pytest_cache .mypy_cache .ruff_cache demo-output bench-output
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
