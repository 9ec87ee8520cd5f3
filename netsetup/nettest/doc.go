// Package nettest is a network to test on, made of namespaces of its own and
// gone with the test:
//
//	lab := nettest.New(t)                  // or nettest.New(t, nettest.Hairpin)
//	before := lab.Snapshot(t)
//	lab.Host.Run(exec.Command("vmrun", ...)) // a process on the lab's host
//	lab.Outside.Ping(ctx, addr, 3, 0)        // from across the wire
//	before.Check(t)                        // nothing was left behind
//
// Host stands in for the machine that runs guests and holds the NIC lab0, one end
// of a veth pair. Outside is a machine on the wire. By default the wire is the
// veth pair alone; with Switch there is a bridge between them, and with Hairpin
// that bridge reflects frames to where they came from, as an 802.1Qbg switch
// does. AddNIC gives the host more NICs, and AddMachine a switch more machines.
//
//	plain     Host lab0 ────────────────────────── wire0 Outside
//	Switch    Host lab0 ── port-lab0 [sw0] port-wire0 ── wire0 Outside
//
// The host's NICs can be unplugged, removed and added again, renamed, moved and
// given another MTU or other addresses. ServeAddresses starts a real DHCP server
// and router in Outside. What tests send and see is package wire's.
//
// # Leaks
//
// A guest's children live in namespaces of their own, where ip link does not
// show them, and those can be kept alive by a process, a descriptor, a mount or a
// mere socket. Tests of other packages run on the same kernel at the same time
// and make the same things. So a Snapshot counts only what belongs to its lab,
// and says how it can tell:
//
//   - the links in the lab's own namespaces, with their MAC, MTU and promiscuity,
//     their addresses and other names, and in the same namespaces routes and rules
//     of all tables, neighbours that are proxied or permanent, and nftables tables;
//   - the host's sysctls that belong to a link, and ip_forward;
//   - macvlan and macvtap children in any namespace that can be reached by
//     /proc/PID/task/TID/ns, by a descriptor, or by a mount, whose parent
//     (IFLA_LINK with IFLA_LINK_NETNSID) is in a lab's namespace;
//   - children that cannot be reached, by a question to the kernel: a passthru
//     child can be made on a NIC only as long as it has no other child, wherever
//     that is and whatever keeps it;
//   - processes that live in the lab's namespaces or in one with a child of its
//     NICs, that carry one of the snapshot's tags (a run directory, say) in their
//     command line, or that descend from the test;
//   - namespaces that those processes, or the test's own, hold by a thread, a
//     descriptor or a socket;
//   - /dev/tapN that is no device, or belongs to no macvtap that can be found.
//
// The test's own process and its descendants are looked at as a whole, so tests
// that run in parallel within one process must share a Snapshot.
package nettest
