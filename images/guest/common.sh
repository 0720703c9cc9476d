# shellcheck shell=bash disable=SC2154
# Shared by the scripts in this folder, which set $here.

# The time stamp of everything that is built: Linux 6.12's release day.
export SOURCE_DATE_EPOCH=1731801600
export LC_ALL=C TZ=UTC

begun=$SECONDS
step() { printf '[%3d s] %s\n' "$((SECONDS - begun))" "$*" >&2; }
die() { printf 'guest: %s\n' "$*" >&2; exit 1; }

# version PACKAGE: the version that is installed, or else the one that would be.
version() {
	local v
	v=$(dpkg-query -W -f '${db:Status-Abbrev}${Version}' "$1" 2>/dev/null || true)
	case $v in
	ii*) printf '%s' "${v#ii }" ;;
	*) candidate "$1" ;;
	esac
}

# candidate PACKAGE: the version that apt-get would fetch.
candidate() { apt-cache policy "$1" | awk '$1 == "Candidate:" { print $2 }'; }

# digest_of FILES AND FOLDERS…: one short hash over their names, modes and contents.
digest_of() {
	(cd "$here" && find "$@" -type f -printf '%m %p\n' | sort -k 2 | while read -r mode file; do
		printf '%s %s %s\n' "$mode" "$file" "$(sha256sum <"$file")"
	done)
}
short() { sha256sum | cut -c 1-16; }
