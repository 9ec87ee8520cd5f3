package netsetup_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"vmrun/netsetup"
	"vmrun/netsetup/nettest"
)

// Nobody has vmrun open a file of his choice by a link in the lock's place.
func TestSharedFileIsNoLink(t *testing.T) {
	nettest.Root(t)
	ns, err := netsetup.CurrentNamespace()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	victim := filepath.Join(t.TempDir(), "victim")
	err = ns.Do(func() error {
		err := unix.Unshare(unix.CLONE_NEWNS)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		}
		if err == nil {
			err = unix.Mount("tmpfs", filepath.Dir(netsetup.SharedFile), "tmpfs", 0, "size=64k")
		}
		if err == nil {
			err = os.Symlink(victim, netsetup.SharedFile)
		}
		if err != nil {
			return err
		}
		unlock, err := netsetup.LockShared(t.Context())
		if err == nil {
			unlock()
		}
		if !errors.Is(err, unix.ELOOP) {
			t.Errorf("lock: %v, want ELOOP", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(victim); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("where the link led is a file now: %v", err)
	}
}
