// Command bench puts vmrun beside what people do without it, on the same work and
// in the same run: A, B, C, A, B, C, …
//
//	make bench                               # all of it: most of an hour; writes RESULTS.md and charts
//	make bench BENCHFLAGS=-quick             # under 5 minutes; prints only
//	go run ./launcher/bench -h
//
// The contenders:
//
//	QEMU alone  the floor: a child that is there already, and QEMU started on it by
//	            the bench itself, which waits for the monitor's first answer
//	by hand     a script: ip link, mknod, QEMU with -daemonize (see byHand)
//	libvirt     Debian's libvirtd with <interface type='direct'>, and virsh. A lab
//	            has no systemd, so it goes without cgroups, security driver and
//	            mount namespaces, which spares it work
//	vmrun       with its defaults: it confines QEMU, gives it a network namespace,
//	            follows its multicast groups and learns its addresses
//	control     the script once more, with -control: how far its ratio is from 1 is
//	            what the figures cannot tell
//
// All have the same QEMU with the same hardware, or nothing is measured: what
// their QEMUs were told is brought to one form and compared (equal.go). Where a
// device sits on the bus is left out of that. VMRUN_BENCH_SHOW=1 prints the words.
//
// The cases, by -cases:
//
//	life      from the command that starts a guest until it returns, which is when
//	          the guest runs; from the one that kills it until nothing is left
//	boot      from the start until the guest's first frame is on the wire; from its
//	          power button until nothing is left
//	death     from a SIGKILL of QEMU until nothing is left
//	idle      how often what is not QEMU gets up while nothing happens
//	children  without guests: 100 links made, opened, deleted; frames of 60 bytes
//	          from the wire through a tap, flooded and one by one
//	streams   TCP between guests that stay up; how soon a lost carrier reaches the
//	          guest, and a joined group the child
//	list      ps and virsh list, status and virsh dominfo, beside 1, 10, 100 guests
//	fleet     50 paused guests one after the other: time, CPU time, and the memory of
//	          what is not QEMU
//
// Figures are medians with quartiles; ratios come with the interval in which they
// are certain by 95 %. Nothing is asserted but that the hardware is the same:
// -check compares the ratios, not the times, with those that were kept, and tells
// what moved by more than 20 %.
//
// The lab is in namespaces of its own, of PIDs, mounts and the network, and ends
// with the program, whatever happens (stage.go). Its files, kernel and initrd among
// them, are in memory: what a disk is asked for anew differs from one start to the
// next. Nothing else may run beside it.
package main
