package netsetup

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A kernel without nf_tables cannot be had beside one with it: these are its
// answers to a socket and to a transaction.
func TestPinUnsupported(t *testing.T) {
	for _, errno := range []error{unix.EPROTONOSUPPORT, unix.EOPNOTSUPP} {
		err := Child{Name: "net0"}.err("pin", pinFailed(fmt.Errorf("netlink receive: %w", errno)))
		if !errors.Is(err, errno) || !strings.Contains(err.Error(), "modprobe nf_tables") {
			t.Errorf("%v", err)
		}
	}
	if err := pinFailed(unix.EPERM); err != unix.EPERM {
		t.Errorf("%v", err)
	}
	if err := pinFailed(nil); err != nil {
		t.Errorf("%v", err)
	}
}
