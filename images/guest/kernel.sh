#!/bin/bash
# kernel.sh INTO: builds vmlinux and bzImage, with kernel.config, into the folder INTO. About five minutes on two cores.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/common.sh"
into=$1
source=/usr/src/linux-source-6.12.tar.xz
tree=$into/tree
export KBUILD_BUILD_USER=hearth KBUILD_BUILD_HOST=hearth KBUILD_BUILD_VERSION=1
KBUILD_BUILD_TIMESTAMP=$(date -u -d "@$SOURCE_DATE_EPOCH")
export KBUILD_BUILD_TIMESTAMP

step "kernel: unpacking $source (10 s)"
mkdir -p "$tree"
tar -C "$tree" --strip-components=1 -xf "$source"
for patch in "$here"/patches/*.patch; do
	step "kernel: $(basename "$patch")"
	patch -d "$tree" -p1 -s <"$patch" >&2
done

step "kernel: configuring"
make -s -C "$tree" tinyconfig >&2
(cd "$tree" && scripts/kconfig/merge_config.sh -m .config "$here/kernel.config" >/dev/null)
make -s -C "$tree" olddefconfig >&2
# An option that Kconfig dropped or forced is a mistake in kernel.config.
wrong=0
while read -r line; do
	case $line in
	CONFIG_*=n) ! grep -q "^${line%n}" "$tree/.config" || { echo "not taken: $line" >&2; wrong=1; } ;;
	CONFIG_*) grep -qxF "$line" "$tree/.config" || { echo "not taken: $line" >&2; wrong=1; } ;;
	esac
done <"$here/kernel.config"
[ "$wrong" = 0 ] || die "kernel.config does not fit this kernel source"

step "kernel: compiling with $(nproc) jobs (about 10 CPU minutes)"
make -C "$tree" -j "$(nproc)" vmlinux bzImage >"$into/make.log" 2>&1 || {
	grep -m 20 -iE 'error|\*\*\*' "$into/make.log" >&2
	tail -n 20 "$into/make.log" >&2
	die "the kernel does not compile"
}
strip --strip-all -o "$into/vmlinux" "$tree/vmlinux"
cp "$tree/arch/x86/boot/bzImage" "$into/bzImage"
cp "$tree/.config" "$into/kernel.config"
cp "$tree/System.map" "$into/System.map"
rm -rf "$tree" "$into/make.log"
