# make build                                                     kiln and kiln-run, in target/release
# make demo [PROMPT="..."] [SEED=0] [BUDGET=1GiB] [OUT=out.png]  makes a picture with the model that ships
# make test [ONLY=REGEX]                                         runs every test, the longest by samples
# make test-full                                                 runs every case of every test
# make fuzz [CASES=1000] [EVERY=20] [FIRST=0]                    random programs through the compiler
# make fuzz-guided [SECONDS=60] [JOBS=2] [TARGETS="..."]         readers of files, guided by coverage (AFL++)
# make test-aarch64                                              runs the runtime on emulated arm64; for root on Debian
# make debian [RELEASE=trixie]                                   demo and test in a fresh root of a Debian release; for root
# make mali [MALI=8] [BLESS=1]                                   machine code for mobile GPUs; for root on Debian
# make mali-published                                            the model of its times beside what others measured
# make wheel                                                     the package for Python, in target/wheels
# make check                                                     formatting, lints, licences, the size of kiln-run
# make advisories                                                known flaws of dependencies; fetches RustSec's database

PROMPT ?= a red heart
SEED ?= 0
BUDGET ?= 1GiB
OUT ?= out.png
# The timesteps and the sampler with which the few-step LoRA was trained.
FEW_STEPS := --sampler lcm --spacing trailing --steps 4
BUNDLE := target/emoji-256.kiln
KILN := target/release/kiln

.PHONY: demo wheel test test-full fuzz fuzz-guided test-aarch64 debian mali mali-published check advisories build

# With the feature of the tests, so that these need no other build of the same crates.
build:
	@tools/setup/rust.sh
	cargo build --release --locked -p kiln -p kiln-runtime --features kiln-bundle/testing

demo: build
	@tools/setup/opencl.sh
	$(KILN) compile --model emoji-256 --lora models/emoji-256-turbo.safetensors --guidance-branches 1 \
	    --budget $(BUDGET) -o $(BUNDLE)
	$(KILN) run $(BUNDLE) --prompt "$(PROMPT)" --seed $(SEED) $(FEW_STEPS) -o $(OUT)
	$(KILN) inspect $(BUNDLE)
	@echo "\nThe picture is in $(OUT)."

wheel:
	@tools/setup/rust.sh
	tools/setup/python.sh
	target/python/bin/pip wheel -q --no-deps --no-build-isolation -w target/wheels ./runtime/python

test:
	@tools/setup/rust.sh
	@tools/setup/opencl.sh --tests
	@tools/setup/oclgrind.sh
	tools/test.sh '$(ONLY)'

test-full:
	KILN_EVERY=1 $(MAKE) test

CASES ?= 1000
EVERY ?= 20
FIRST ?= 0
fuzz:
	KILN_CASES=$(CASES) KILN_EXECUTE_EVERY=$(EVERY) KILN_FIRST=$(FIRST) \
	    cargo test --release --locked -p kiln --test programs random -- --nocapture

SECONDS ?= 60
JOBS ?= 2
fuzz-guided:
	@tools/setup/rust.sh
	tools/fuzz/guided.sh $(SECONDS) $(JOBS) $(TARGETS)

# FILTER= adds the model that ships; its kernels compile for a quarter of an hour under emulation.
FILTER ?= small
test-aarch64:
	tools/aarch64.sh $(FILTER)

RELEASE ?= trixie
debian:
	tools/debian.sh $(RELEASE)

# MALI=8 compiles for Mali only the 8 kernels of sd21-base in FP16 with most predicted time.
mali: build
	tools/mali/setup.sh
	python3 -B tools/mali/code.py $(if $(MALI),--mali $(MALI)) $(if $(BLESS),--bless)

mali-published:
	python3 -B tools/mali/published.py

# Most bytes that kiln-run may take on a device.
KILN_RUN_BYTES := 2097152
check:
	cargo fmt --all --check
	cargo clippy --release --locked --workspace --all-targets -- -D warnings
	cargo clippy --release --locked -p kiln --test aarch64 -- -D warnings
	@tools/setup/cargo-deny.sh
	cargo deny --locked check bans licenses sources
	cargo build --locked --profile device -p kiln-runtime --bin kiln-run --no-default-features --features cli
	@bytes=$$(stat -c %s target/device/kiln-run); echo "kiln-run takes $$bytes bytes"; \
		[ $$bytes -le $(KILN_RUN_BYTES) ] || { echo "at most $(KILN_RUN_BYTES) are allowed" >&2; exit 1; }

advisories:
	@tools/setup/cargo-deny.sh
	cargo deny --locked check advisories
