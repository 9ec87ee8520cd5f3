#!/bin/sh
# fetch-kernel.sh CACHE [arm64]: puts Debian's cloud kernel and the modules that a
# test guest may want into CACHE/kernel, once, or that for arm64 into
# CACHE/kernel-arm64. Needs apt-get, dpkg and root's view of the package lists, and
# for arm64 the network: its lists are fetched apart from the host's, whose dpkg
# hears nothing of another architecture. Installs nothing.
set -eu

case $# in
1) link=kernel arch=amd64 ;;
2) link=kernel-$2 arch=$2 ;;
*)
	echo "usage: $0 CACHE [arm64]" >&2
	exit 2
	;;
esac

# What init loads, then what a test may ask for with guesttest.Modules.
wanted='virtio_pci virtio_net virtio_blk button pvpanic-pci vmxnet3
virtio_console virtio-rng virtio_balloon virtio_scsi sd_mod sr_mod evdev
macvtap ipvlan ipvtap dummy veth bridge 8021q bonding tun vhost_net
nf_tables nft_limit nft_objref nft_dup_netdev nft_fwd_netdev
sch_htb sch_tbf sch_ingress cls_bpf virtiofs isofs qemu_fw_cfg'

mkdir -p "$1"
cache=$(cd "$1" && pwd)
# A longer list makes another directory: a cache from before is not mistaken.
stamp=$(echo "$wanted" | cksum | cut -d' ' -f1)
case "$(readlink "$cache/$link" 2>/dev/null || true)" in
kernel-*-"$stamp") [ -e "$cache/$link/vmlinuz" ] && exit 0 ;;
esac

tmp=$(mktemp -d "$cache/fetch.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
trap 'exit 1' HUP INT TERM
chmod 755 "$tmp" # apt downloads as its own user where it can

options=
if [ $arch != amd64 ]; then
	mkdir -p "$tmp/apt/lists/partial" "$tmp/apt/cache/archives/partial"
	options="-o APT::Architecture=$arch -o APT::Architectures=$arch -o Dir::State=$tmp/apt
		-o Dir::State::Lists=$tmp/apt/lists -o Dir::State::status=/dev/null -o Dir::Cache=$tmp/apt/cache"
fi

# linux-image-cloud-amd64 is a metapackage; its dependency holds the kernel.
image() {
	apt-cache $options depends linux-image-cloud-$arch 2>/dev/null |
		sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p' | head -n 1
}
download() {
	package=$(image)
	[ -n "$package" ] && (cd "$tmp" && apt-get $options download -qq "$package" >apt.log 2>&1)
}
# Package lists that are missing or older than the mirror are the usual reason to
# fail, and a foreign source that does not answer is none.
if ! download; then
	apt-get $options update -qq >"$tmp/apt.log" 2>&1 || true
	if ! download; then
		cat "$tmp/apt.log" >&2
		echo "$0: cannot download linux-image-cloud-$arch's kernel" >&2
		exit 1
	fi
fi

dpkg -x "$tmp"/linux-image-*.deb "$tmp/root"
out=$tmp/out
mkdir -p "$out/modules"
cp "$tmp"/root/boot/vmlinuz-* "$out/vmlinuz"
find "$tmp/root/lib/modules" -name '*.ko' >"$tmp/all"

# modules.dep is made at installation only, but each module names what it
# depends on. A module of that name may be written with - or with _.
path() {
	pattern=$(echo "$1" | sed 's/[-_]/[-_]/g')
	grep "/$pattern\.ko\$" "$tmp/all" | head -n 1
}
queue=$wanted
while [ -n "$queue" ]; do
	next=
	for module in $queue; do
		file=$(path "$module")
		if [ -z "$file" ]; then
			[ $arch = amd64 ] || continue # a module is built in, or not, as the architecture has it
			echo "$0: $package has no module $module" >&2
			continue
		fi
		[ -e "$out/modules/${file##*/}" ] && continue
		cp "$file" "$out/modules/"
		next="$next $(tr '\0' '\n' <"$file" | sed -n 's/^depends=//p' | tr ',' ' ')"
	done
	queue=$(echo $next)
done

name=kernel-${package#linux-image-}-$stamp
chmod -R a+rX "$out"
# Whoever comes second finds the directory there and keeps it.
mv -T "$out" "$cache/$name" 2>/dev/null || [ -e "$cache/$name/vmlinuz" ]
ln -s "$name" "$tmp/$link"
mv -T "$tmp/$link" "$cache/$link"
echo "$cache/$link -> $name" >&2
