package qmp

import goqemu "github.com/digitalocean/go-qemu/qmp"

// The vocabulary is go-qemu's, so that programs which speak it need no
// translation.
type (
	// Event is an asynchronous message of QEMU's; what its Data holds is in the
	// qapi file that defines it. Numbers in Data are json.Number, so that a
	// Server relays 64-bit values unharmed; DecodeEvent puts Data into a struct.
	Event = goqemu.Event

	// Version is QEMU's version, as in its greeting (VersionInfo,
	// qapi/control.json).
	Version = goqemu.Version
)

// A Client serves wherever go-qemu's Monitor is asked for, its raw package
// included.
var _ goqemu.Monitor = (*Client)(nil)
