#!/bin/sh
# fetch-agent.sh CACHE: puts Debian's qemu-ga into CACHE/qemu-ga, once, for test
# guests. Needs apt-get and dpkg; installs nothing, so that no service of the
# host's starts. Its libraries are those of Debian's QEMU.
set -eu

if [ $# -ne 1 ]; then
	echo "usage: $0 CACHE" >&2
	exit 2
fi

mkdir -p "$1"
cache=$(cd "$1" && pwd)
[ ! -e "$cache/qemu-ga" ] || exit 0

tmp=$(mktemp -d "$cache/fetch.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
trap 'exit 1' HUP INT TERM
chmod 755 "$tmp" # apt downloads as its own user where it can

download() { (cd "$tmp" && apt-get download -qq qemu-guest-agent >apt.log 2>&1); }
# Package lists that are missing or older than the mirror are the usual reason to
# fail, and a foreign source that does not answer is none.
if ! download; then
	apt-get update -qq >"$tmp/apt.log" 2>&1 || true
	if ! download; then
		cat "$tmp/apt.log" >&2
		echo "$0: cannot download qemu-guest-agent" >&2
		exit 1
	fi
fi
dpkg -x "$tmp"/qemu-guest-agent_*.deb "$tmp/root"
mv "$tmp/root/usr/sbin/qemu-ga" "$cache/qemu-ga"
