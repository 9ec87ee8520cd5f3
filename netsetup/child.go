package netsetup

import (
	"fmt"

	"vmrun/configs"
)

// MaxQueues is the most queues a tap can have (drivers/net/tap.c, MAX_TAP_QUEUES).
const MaxQueues = 256

// Child is one link of a guest, as it is to be made. Its MAC is set: in passthru
// it is the parent's own, or one that the parent takes on.
type Child struct {
	Name  string // inside the guest's namespace
	Index int    // interface index; high and unique on the host, because /dev/tapN is one name space for all

	configs.NIC
	LinkDown bool // the owner has pulled the guest's cable
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
	return &LinkError{Op: op, Link: c.Name + "@" + c.Lower(), Err: err}
}

// ipvtap reports whether the child is one. A kind left out is macvtap.
func (c Child) ipvtap() bool { return c.Kind == configs.KindIPvtap }
