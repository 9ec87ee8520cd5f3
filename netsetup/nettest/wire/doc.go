// Package wire is what tests send and see on a network: pings, raw Ethernet
// frames that carry a tag, counts of the frames that arrive with one, TCP streams
// and UDP datagrams, and what a machine believes of its neighbours.
//
// Both ends of a test use it, the lab on the host (package nettest) and the
// program inside the test guest. Every function works in the network namespace
// of the calling thread and needs CAP_NET_RAW there; what it returns keeps
// working from any thread.
package wire
