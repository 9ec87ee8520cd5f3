// Package netsetup makes a guest's network in the kernel: a network namespace
// of its own, macvtap children of the host's NICs inside it, and the open tap
// queues that QEMU reads and writes.
//
// The order of things, for one guest:
//
//	ns, _ := NewNamespace()              // empty; ends by itself with its last user
//	parents, _ := Survey("eth0")         // what the host has
//	problems := Check(children, parents, neighbours, force)
//	ns.Create(child)                     // straight into ns, down and silent
//	taps, _ := ns.OpenTaps(child)        // one file for each queue
//	ns.Shape(child, child.Bandwidth)     // its limits
//	ns.SetFilter(child, Filter{…})       // what it lets in; again whenever the guest joins a group
//	… start QEMU inside, with ns.Do …
//	ns.Up(child)                         // right before the guest runs
//	ns.Delete(child)                     // or nothing: the kernel does it with QEMU
//
// A child never lives anywhere but in its guest's namespace, so nothing can
// leak: with the last process inside, the kernel removes namespace and children
// by itself (net/core/net_namespace.c, cleanup_net). The price is that whoever
// holds a Namespace, or a socket or a tap opened through it, keeps it alive, so
// the launcher closes its handle the moment QEMU is gone.
//
// What lives outside, in the host's namespace, is what guests share: the shim by
// which the host reaches them (Reach, Unreach), and VLAN devices (AcquireVLAN,
// ReleaseVLAN). Each bears the marks of its users, and RepairShared takes away
// what the dead left.
//
// The kernel answers most mistakes with a bare EBUSY or EINVAL. Check knows
// them beforehand and says what is wrong and what to type; it is pure, and
// works on what Survey saw. Files that end in _linux.go do the system calls.
package netsetup
