//go:build goqemu

package qmp

import goqemu "github.com/digitalocean/go-qemu/qmp"

// go-qemu's package imports go-libvirt, so a build that wants its types needs
// both modules; nothing of vmrun's own does.
type (
	Event   = goqemu.Event
	Version = goqemu.Version
)

// A Client serves wherever go-qemu's Monitor is asked for, its raw package
// included.
var _ goqemu.Monitor = (*Client)(nil)
