#!/usr/bin/env bash
# demo.sh VMRUN: shows two guests at work on a NIC that is made for it, and that
# nothing is left afterwards. make demo builds, fetches and installs what it
# needs. Exit status 1 when something was not as it should be.
set -euo pipefail

[ $# -eq 1 ] || { echo "usage: $0 VMRUN" >&2 && exit 2; }
[ "$(id -u)" = 0 ] || { echo "$0: needs root, for network namespaces: sudo make demo" >&2 && exit 2; }
PATH=$(cd "$(dirname "$1")" && pwd):$PATH:/usr/sbin:/sbin
cd "$(dirname "$0")/../.."

# A socket's path has 107 bytes at most, so whatever TMPDIR says:
dir=$(mktemp -d /tmp/vmrun-demo.XXXXXX)
host=vmrun-demo-$$-host outside=vmrun-demo-$$-outside
export VMRUN_RUN_DIR=$dir/run

say() { printf '\n' && printf '%s\n' "$@"; }
die() {
	printf '\nThe demonstration failed: %s\n' "$1" >&2
	exit 1
}

# on host|outside COMMAND...: shows a command, runs it in that namespace, and
# keeps what it printed in $out.
on() {
	local prompt=$1 ns=${!1} status=0
	shift
	printf '\n%s# %s\n' "$prompt" "$*"
	out=$(ip netns exec "$ns" "$@" 2>&1) || status=$?
	printf '%s\n' "${out:-(nothing)}"
	[ $status = 0 ] || die "the command ended with status $status"
}

# expect PATTERN...: what the last command must have printed.
expect() {
	local pattern
	for pattern in "$@"; do
		grep -Eq -- "$pattern" <<<"$out" || die "no line above matches \"$pattern\""
	done
}

# type_into GUEST LINE...: gives each line to the guest's console, waits for its
# answer, and leaves with the key that does that, Ctrl-].
type_into() {
	local guest=$1 line
	shift
	printf '\nhost# vmrun console %s\n' "$guest"
	coproc CONSOLE { exec ip netns exec "$host" vmrun console "$guest" 2>&1; }
	local pid=$CONSOLE_PID
	for line in "$@"; do
		printf '%s\n' "$line"
		printf '%s\n' "$line" >&"${CONSOLE[1]}"
		while IFS= read -r -t 20 out <&"${CONSOLE[0]}"; do
			out=${out%$'\r'}
			[[ $out == *ready* ]] || break # that was shown from before
		done
		printf '%s\n' "$out"
		expect '^vmrun-guest: ok sent=3 received=3$'
	done
	printf '\035' >&"${CONSOLE[1]}"
	wait "$pid" || die "vmrun console ended with status $?"
}

# ours lists the living processes of this demonstration: QEMU and supervisor
# both write their errors to a file in the run directory.
ours() {
	local process
	for process in /proc/[0-9]*; do
		case $(readlink "$process/fd/2" 2>/dev/null) in
		"$dir"/*) echo "${process#/proc/}" ;;
		esac
	done
	ip netns pids "$host" 2>/dev/null || true
	ip netns pids "$outside" 2>/dev/null || true
}

alone() { [ -z "$(ours)" ]; }

# whole says that lab0 has no child in any namespace: the kernel gives a NIC to
# a passthru child only if it has no other.
whole() {
	ip -n "$host" link add probe link lab0 type macvtap mode passthru 2>/dev/null &&
		ip -n "$host" link delete probe
}

# inhabited NAMESPACE: whether a process lives in it. One that began after the
# guests' end is not theirs: the kernel uses such numbers again.
inhabited() {
	local process start
	for process in /proc/[0-9]*; do
		[ "$(readlink "$process/ns/net" 2>/dev/null)" = "$1" ] || continue
		start=$(sed 's/.*) //' "$process/stat" 2>/dev/null | cut -d' ' -f20)
		[ "${start:-$ended}" -ge "$ended" ] || return 0
	done
	return 1
}

# within SECONDS COMMAND...: waits until the command succeeds.
within() {
	local deadline=$((SECONDS + $1))
	shift
	until "$@"; do
		[ $SECONDS -lt $deadline ] || return 1
		sleep 0.1
	done
}

# remove ends whatever still runs and takes the lab down.
remove() {
	trap '' HUP INT TERM
	local pid
	if ! alone; then
		ip netns exec "$host" timeout 20 vmrun kill lab-a lab-b >/dev/null 2>&1 || true
		for pid in $(ours); do kill -KILL "$pid" 2>/dev/null || true; done
	fi
	ip netns delete "$host" 2>/dev/null || true
	ip netns delete "$outside" 2>/dev/null || true
	rm -rf "$dir"
}
trap remove EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

go run ./launcher/guesttest/mkguest "$dir" >/dev/null
cp configs/examples/lab-a.toml configs/examples/lab-b.toml "$dir"
cd "$dir"

say "A host with a NIC, lab0, and a machine at the other end of its cable. Both are" \
	"network namespaces made for this demonstration; nothing else here is touched." \
	"\"host#\" and \"outside#\" say where a command runs."
ip netns add "$host"
ip netns add "$outside"
ip -n "$host" link add lab0 type veth peer name wire0 netns "$outside"
ip -n "$host" link set lab0 up
ip -n "$outside" link set wire0 up
ip -n "$outside" addr add 192.0.2.1/24 dev wire0
ip -n "$outside" addr add 2001:db8::1/64 dev wire0 nodad
on host ip -brief link show lab0
on outside ip -brief addr show wire0

say "A guest is a file. This one has a kernel, and a NIC of its own on lab0:"
on host cat lab-a.toml
expect 'parent = "lab0"'

say "Start it, and a second one like it:"
on host vmrun start lab-a.toml lab-b.toml
expect '^lab-a: running' '^lab-b: running'
on host vmrun ps
expect '^lab-a +running' '^lab-b +running'
on host vmrun status lab-a
expect '^state +running'
qemus=$(sed -n 's/.*"pid": \([0-9]*\),.*/\1/p' < <(ip netns exec "$host" vmrun ps --json))
namespaces=$(for pid in $qemus; do readlink "/proc/$pid/ns/net"; done)

say "They boot. The serial console of each is kept in a log:"
for guest in lab-a lab-b; do
	within 60 grep -q 'vmrun-guest: ready' "$VMRUN_RUN_DIR/$guest/console.log" ||
		die "$guest did not boot within 60 s: $(cat "$VMRUN_RUN_DIR/$guest/console.log")"
done
on host vmrun logs --console lab-a
expect 'vmrun-guest: ready .*192\.0\.2\.11'

say "On the network each is a machine like any other, IPv4 and IPv6:"
on outside ping -c 3 -i 0.2 192.0.2.11
expect '3 received'
on outside ping -c 3 -i 0.2 2001:db8::12
expect '3 received'

say "And they reach each other. This is typed into lab-a's console:"
type_into lab-a 'ping 192.0.2.12 3 0.2' 'ping 2001:db8::12 3 0.2'

say "The host's own tools do not see the guests' ends: they live in network" \
	"namespaces of their own, which vmrun can look into."
on host ip -brief link show type macvtap
[ -z "$out" ] || die "they are seen"
on host vmrun nsenter lab-a -- ip -brief link show net0
expect '^net0@'

say "Stop both. Each is sent its power button, and shuts down by itself:"
on host vmrun stop lab-a lab-b
expect '^lab-a: stopped \(powerdown\)$' '^lab-b: stopped \(powerdown\)$'
ended=$(sed 's/.*) //' /proc/self/stat | cut -d' ' -f20)
on host vmrun logs --console lab-a
expect 'vmrun-guest: power button' 'Power down'
on host vmrun ps
! grep -q '^lab-' <<<"$out" || die "a guest is left"

say "Nothing is left of them:"
# The supervisors end right after they have answered.
within 5 alone || die "processes are left: $(ours)"
echo "  no process"
within 5 whole || die "lab0 still has a child, in some namespace"
echo "  no link: the kernel would give lab0 as a whole to somebody else"
for namespace in $namespaces; do
	! inhabited "$namespace" || die "a process is left in $namespace"
done
[ "$(wc -w <<<"$namespaces")" = 2 ] || die "the guests' namespaces were not found"
echo "  no namespace with anybody in it"
remove
trap - EXIT
if ip netns list | grep -q "^vmrun-demo-$$-" || [ -e "$dir" ]; then
	die "the lab itself is left"
fi
echo "  and the lab is gone too"
