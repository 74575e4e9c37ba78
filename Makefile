# make demo [PROMPT="..."] [SEED=0] [BUDGET=1GiB] [OUT=out.png]    a picture from the shipped model
# make test                                                        every test, at full size a sample
# make test-full                                                   every precision at full size and every kernel for Mali too
# make test-aarch64                                                the runtime on aarch64, emulated; root on Debian
# make check                                                       formatting and lints

PROMPT ?= a red heart
SEED ?= 0
BUDGET ?= 1GiB
OUT ?= out.png
BUNDLE := target/emoji-256.kiln
KILN := target/release/kiln

.PHONY: demo test test-full test-aarch64 check build

build:
	cargo build --release --locked -p kiln -p kiln-runtime

demo: build
	@tools/setup/opencl.sh
	$(KILN) compile --model emoji-256 --budget $(BUDGET) -o $(BUNDLE)
	$(KILN) run $(BUNDLE) --prompt "$(PROMPT)" --seed $(SEED) -o $(OUT)
	$(KILN) inspect $(BUNDLE)
	@echo "\nThe picture is in $(OUT)."

test:
	@tools/setup/opencl.sh --tests
	tools/test.sh
	tools/setup/oclgrind.sh

test-full:
	KILN_EVERY=1 $(MAKE) test

# FILTER= runs the shipped model too, whose kernels compile for a quarter of an hour.
FILTER ?= small
test-aarch64:
	tools/aarch64.sh $(FILTER)

check:
	cargo fmt --all --check
	cargo clippy --release --locked --workspace --all-targets -- -D warnings
