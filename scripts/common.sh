# shellcheck shell=bash disable=SC2034
# Shared by the scripts in this folder.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# One place for everything that outlives a run.
cache=${HEARTH_CACHE:-$HOME/.cache/hearth}
bin=${CARGO_TARGET_DIR:-$root/target}/release

# step WORDS…: what happens now, and about how long it takes.
step() { printf '\n==> %s\n' "$*" >&2; }
die() { printf 'hearth: %s\n' "$*" >&2; exit 1; }

# need_packages PACKAGES…: installs those Debian packages that are missing, in one command (a
# qemu-system-x86 that comes alone may remove a qemu-utils of another version). A qemu-utils that
# is newer than the qemu-system-x86 to be had goes back to the latter's version: else apt refuses
# both.
need_packages() {
	local package missing=() rights=() wanted=() version
	command -v dpkg-query >/dev/null || return 0
	for package in "$@"; do
		dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null | grep -q '^ii' ||
			missing+=("$package")
	done
	[ ${#missing[@]} = 0 ] && return
	if [ "$(id -u)" != 0 ]; then
		command -v sudo >/dev/null || die "as root, run: apt-get install ${missing[*]}"
		rights=(sudo)
	fi
	step "Installing Debian packages: ${missing[*]} (about a minute)"
	"${rights[@]}" apt-get update -q >&2
	for package in "$@"; do
		version=
		if [ "$package" = qemu-utils ] && [[ " $* " = *" qemu-system-x86 "* ]]; then
			version=$(candidate qemu-system-x86)
		fi
		wanted+=("$package${version:+=$version}")
	done
	DEBIAN_FRONTEND=noninteractive "${rights[@]}" apt-get install -q -y \
		--no-install-recommends --allow-downgrades "${wanted[@]}" >&2
}

# candidate PACKAGE: the version that apt would install; nothing if there is none.
candidate() {
	LC_ALL=C apt-cache policy "$1" | awk '$1 == "Candidate:" && $2 != "(none)" { print $2 }'
}

need_rust() {
	local have want
	want=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$root/Cargo.toml")
	command -v cargo >/dev/null ||
		die "Rust is missing: install $want or later (https://rustup.rs), then try again"
	have=$(rustc --version | awk '{ print $2 }')
	[ "$(printf '%s\n%s\n' "$want" "$have" | sort -V | head -n 1)" = "$want" ] ||
		die "Rust $have is too old: $want or later is needed (rustup update)"
}

# build: all that the demo, the tests and the benchmarks run, in one go, so that nothing is
# compiled twice.
build() {
	step "Building Hearth (about 6 minutes on 2 cores the first time, then seconds)"
	(cd "$root" && cargo build --release --workspace --all-targets)
}

# probe: builds the guest that the tests run by the dozen, and says where it is in HEARTH_PROBE.
probe() {
	step "Building the probe, the tests' own guest (half a minute the first time, then seconds)"
	cargo build --release --manifest-path "$root/tests/probe/Cargo.toml" \
		--target-dir "$root/tests/probe/target"
	export HEARTH_PROBE=$root/tests/probe/target/release/probe
}

# guest_image: prints the folder with the base guest; builds it when it is not cached.
guest_image() {
	step "The guest: Linux kernel and root file system (about 8 minutes on 2 cores the first time, then seconds)"
	"$root/images/guest/build" | tail -n 1
}
