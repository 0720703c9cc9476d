# shellcheck shell=bash disable=SC2154
# Shared by the scripts in this folder, which set $here.

# The time stamp of everything that is built: Linux 6.12's release day.
export SOURCE_DATE_EPOCH=1731801600
export LC_ALL=C TZ=UTC

begun=$SECONDS
step() { printf '[%3d s] %s\n' "$((SECONDS - begun))" "$*" >&2; }
die() { printf 'guest: %s\n' "$*" >&2; exit 1; }

# versions PACKAGES…: what is installed of them.
versions() { dpkg-query -W -f '${Package} ${Version}\n' "$@"; }

# candidates PACKAGES…: what apt-get would fetch of them.
candidates() { apt-cache policy "$@" | awk '/^[^ ]/ { name = $1 } $1 == "Candidate:" && $2 != "(none)" { print name, $2 }'; }

# digest_of FILES AND FOLDERS…: one short hash over their names, modes and contents.
digest_of() {
	(cd "$here" && find "$@" -type f -printf '%m %p\n' | sort -k 2 | while read -r mode file; do
		printf '%s %s %s\n' "$mode" "$file" "$(sha256sum <"$file")"
	done)
}
short() { sha256sum | cut -c 1-16; }
