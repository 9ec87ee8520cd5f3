package netsetup

import (
	"fmt"
	"net"

	"vmrun/configs"
)

// MaxQueues is the most queues a tap can have (drivers/net/tap.c, MAX_TAP_QUEUES).
const MaxQueues = 256

// Child is one macvtap link, as it is to be made.
type Child struct {
	Name    string // inside the guest's namespace
	Index   int    // interface index; high and unique on the host, because /dev/tapN is one name space for all
	Parent  string // the NIC's name on the host
	Mode    configs.Mode
	MAC     net.HardwareAddr // in passthru the parent's own, or one that the parent takes on
	MTU     int              // bytes; 0 for the parent's
	Queues  int              // tap queues, at least 1
	Promisc bool             // passthru only: make the parent promiscuous
	Sources []net.HardwareAddr
}

// LinkError is an operation on a link that the kernel refused.
type LinkError struct {
	Op   string // "create", "up", "open tap", …
	Link string // the child and its parent, or the parent
	Err  error
}

func (e *LinkError) Error() string { return fmt.Sprintf("%s: %s: %v", e.Link, e.Op, e.Err) }

// Unwrap gives the kernel's error.
func (e *LinkError) Unwrap() error { return e.Err }

func (c Child) err(op string, err error) error {
	return &LinkError{Op: op, Link: c.Name + "@" + c.Parent, Err: err}
}
