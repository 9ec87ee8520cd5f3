package main

import (
	"os"
	"path/filepath"
	"testing"
)

// A snapshot holds memory and disks: both are again what they were.
func TestSnapshotRollback(t *testing.T) {
	h := newHost(t)
	spec := h.diskSpec("lazarus", "qcow2")
	h.cleanup("lazarus")
	h.vmrun(0, `^lazarus: running: `, "start", spec)
	console := h.console("lazarus")
	h.say(console, "writedisk vda 0 c0ffee")
	h.vmrun(0, `^lazarus: snapshot one taken, halted for `, "snapshot", "lazarus", "one")
	h.vmrun(1, `disk\.img has a snapshot "one" already$`, "snapshot", "lazarus", "one")
	h.vmrun(0, `^TAG +TIME +MEMORY +DISKS\none +20\S+ \S+ +\d+MiB +disk0$`, "snapshot", "--list", "lazarus")

	h.say(console, "writedisk vda 0 5adbad")
	h.say(console, "tcp serve 7") // which the guest forgets
	h.connect("192.0.2.11:7").echo("now")
	h.vmrun(0, `^vmrun: lazarus: its file systems were not frozen: .*\n^lazarus: snapshot two taken, of the disks alone, in `, "snapshot", "--disks-only", "lazarus", "two")
	h.vmrun(1, `snapshot "two" is of the disks alone`, "rollback", "lazarus", "two")
	h.vmrun(1, `no snapshot "three": it has \["one" "two"\]$`, "rollback", "lazarus", "three")
	h.vmrun(1, `not passed on: .*: use vmrun rollback$`, "qmp", "lazarus", "snapshot-load")

	h.vmrun(0, `net1 attached`, "nic", "lazarus", "attach", "parent=lab0")
	h.vmrun(1, `other hardware at snapshot "one": it did not have net1: `, "rollback", "lazarus", "one")
	h.vmrun(0, `net1 detached`, "nic", "lazarus", "detach", "net1")

	h.vmrun(0, `^lazarus: rolled back to snapshot one in `, "rollback", "lazarus", "one")
	h.vmrun(0, `^lazarus +running`, "ps")
	if got := h.say(console, "readdisk vda 0 3"); got != "c0ffee" {
		t.Errorf("the disk holds %s", got)
	}
	if _, _, err := console.Run(t.Context(), "tcp stop 7"); err == nil {
		t.Error("the guest remembers what it did after the snapshot")
	}
	h.vmrun(0, `^lazarus: snapshot one deleted`, "snapshot", "--delete", "lazarus", "one")
	h.vmrun(0, `^lazarus: snapshot two deleted`, "snapshot", "--delete", "lazarus", "two")
	h.vmrun(0, `\ATAG[^\n]*\n\z`, "snapshot", "--list", "lazarus")
	h.vmrun(0, `^lazarus: stopped`, "kill", "lazarus")
	h.vmrun(3, `it has ended: vmrun start lazarus$`, "snapshot", "lazarus")
	if left, _ := filepath.Glob(filepath.Join(h.run+".state", "lazarus", "snapshots")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}

	raw := h.diskSpec("raw", "raw")
	h.cleanup("raw")
	h.vmrun(0, `^raw: paused`, "start", "--paused", raw)
	h.vmrun(1, `disk0 is a raw image, and only qcow2 images keep snapshots`, "snapshot", "raw")
	if err := os.Remove(filepath.Join(filepath.Dir(raw), "disk.img")); err != nil {
		t.Error(err)
	}
}
