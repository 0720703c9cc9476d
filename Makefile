# `make help` lists what there is. Each step is a small script in scripts/.

.DEFAULT_GOAL := help
.PHONY: help demo test bench lint clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

demo: ## build everything, boot a Linux micro-VM, show it alive, clean up
	@scripts/demo

test: ## build everything and run all tests
	@scripts/test

bench: ## launches, memory and disks beside QEMU microvm
	@scripts/bench

lint: ## formatting, clippy, shell scripts
	@scripts/lint

clean: ## remove what was built here (the guest image stays in ~/.cache/hearth)
	@cargo clean
