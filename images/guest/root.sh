#!/bin/bash
# root.sh INTO: makes root.qcow2 and initrd.cpio in the folder INTO. About ten seconds.
# Needs no root rights and no mounts: debugfs writes the files into the file system one by one, in sorted order and with
# a fixed clock, so that the same inputs give the same bytes.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/common.sh"
into=$1
debs=$into/debs
stage=$into/stage
size=64M
uuid=68656172-7468-4d00-8000-000000000001
mkdir -p "$debs" "$stage" "$into/root"

step "root: fetching packages"
mapfile -t packages <"$here/root.packages"
(cd "$debs" && apt-get download -q -o APT::Sandbox::User="$(id -un)" "${packages[@]}" >&2) ||
	die "cannot fetch ${packages[*]}; are the package lists old (apt-get update)?"
for deb in "$debs"/*.deb; do
	dpkg-deb -x "$deb" "$stage"
done

step "root: compiling init"
compile() { musl-gcc -std=c11 -Os -Wall -Wno-unused-result -Wno-format-truncation -static -s -o "$1" "$2"; }
compile "$into/init" "$here/src/init.c"
compile "$into/metadata" "$here/src/metadata.c"
compile "$into/initrd-init" "$here/src/initrd.c"

step "root: collecting files"
root=$into/root
mkdir -p "$root"/{bin,sbin,dev,etc,lib,lib64,mnt,proc,root,run,sys,tmp,etc/dropbear,var/log,var/lib,usr/bin,usr/sbin,usr/local/bin}
cp -a "$here/root/." "$root"
install -m 755 "$into/init" "$root/sbin/init"
install -m 755 "$into/metadata" "$root/sbin/metadata"
install -m 755 "$stage/bin/busybox" "$root/bin/busybox" 2>/dev/null || install -m 755 "$stage/usr/bin/busybox" "$root/bin/busybox"
"$root/bin/busybox" --list-full | while read -r applet; do
	case $applet in sbin/init | linuxrc | bin/busybox) continue ;; esac
	[ -e "$root/$applet" ] || ln -s /bin/busybox "$root/$applet"
done
ln -s /proc/mounts "$root/etc/mtab"
install -m 755 "$stage/usr/sbin/dropbear" "$root/usr/sbin/dropbear"
install -m 755 "$stage/usr/bin/dropbearkey" "$stage/usr/bin/dbclient" "$root/usr/bin"
ln -s dbclient "$root/usr/bin/ssh"

# The shared libraries that these programs name, and the ones that those name.
need() {
	objdump -p "$1" | awk '$1 == "NEEDED" { print $2 }' | while read -r library; do
		[ ! -e "$root/lib/$library" ] || continue
		file=$(find "$stage" -name "$library" -print -quit)
		[ -n "$file" ] || die "no package in root.packages has $library, which $(basename "$1") needs"
		case $library in
		ld-linux*) install -m 755 "$(readlink -f "$file")" "$root/lib64/$library"; continue ;;
		esac
		install -m 755 "$(readlink -f "$file")" "$root/lib/$library"
		need "$root/lib/$library"
	done
}
for program in "$root"/usr/sbin/dropbear "$root"/usr/bin/{dropbearkey,dbclient}; do
	need "$program"
done
[ -e "$root/lib64/ld-linux-x86-64.so.2" ] ||
	install -m 755 "$(readlink -f "$(find "$stage" -name ld-linux-x86-64.so.2 -print -quit)")" "$root/lib64/"

step "root: making the file system"
export E2FSPROGS_FAKE_TIME=$SOURCE_DATE_EPOCH
# 4 MiB of journal: a volume must survive kill -9 of its VMM. Room in the group table to grow a thousandfold.
truncate -s "$size" "$into/root.img"
mke2fs -q -F -t ext4 -b 4096 -I 256 -m 0 -N 8192 -L hearth-root -U "$uuid" \
	-O "$(tr -d '\n' <"$here/root.features")" -J size=4 \
	-E "hash_seed=$uuid,lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0" "$into/root.img" >&2
{
	echo "set_current_time @$SOURCE_DATE_EPOCH"
	cd "$root"
	find . -mindepth 1 -printf '%y %m %P\n' | sort -k 3 | while read -r type mode path; do
		case $type in
		d) echo "mkdir /$path" ;;
		l) echo "symlink /$path $(readlink "$path")" ;;
		f) echo "write $root/$path /$path" ;;
		esac
	done
	# debugfs gives new folders 755 and keeps the modes of files.
	echo "set_inode_field /root mode 040700"
	echo "set_inode_field /tmp mode 041777"
	echo "set_inode_field /etc/shadow mode 0100600"
} >"$into/files.debugfs"
debugfs -w -f "$into/files.debugfs" "$into/root.img" >"$into/debugfs.log" 2>&1
! grep -vE '^debugfs|^Allocated inode|^Setting current time|^$' "$into/debugfs.log" >&2 || die "debugfs complained"
e2fsck -fn "$into/root.img" >/dev/null 2>&1 || die "e2fsck complains about the new file system"
qemu-img convert -m 1 -f raw -O qcow2 "$into/root.img" "$into/root.qcow2"

step "initrd"
mkdir -p "$into/initrd/"{dev,proc,root}
install -m 755 "$into/initrd-init" "$into/initrd/init"
find "$into/initrd" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
(cd "$into/initrd" && find . -mindepth 1 | sort | cpio --quiet --reproducible -R 0:0 -o -H newc >"$into/initrd.cpio")

rm -rf "$debs" "$stage" "$root" "$into"/{init,metadata,initrd-init,initrd,root.img,files.debugfs,debugfs.log}
