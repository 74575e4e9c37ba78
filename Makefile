# make demo [PROMPT="..."] [SEED=0] [BUDGET=1GiB] [OUT=out.png]    a picture from the shipped model
# make test                                                        every test
# make check                                                       formatting and lints

PROMPT ?= a red heart
SEED ?= 0
BUDGET ?= 1GiB
OUT ?= out.png
BUNDLE := target/emoji-256.kiln
KILN := target/release/kiln

.PHONY: demo test check build

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
	cargo test --release --locked --workspace
	tools/setup/oclgrind.sh

check:
	cargo fmt --all --check
	cargo clippy --release --locked --workspace --all-targets -- -D warnings
