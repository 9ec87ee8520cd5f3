package main

import (
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

func (g *guest) disks([]string) (answer, error) {
	entries, err := os.ReadDir("/sys/block")
	if err != nil {
		return answer{}, err
	}
	var a answer
	for _, e := range entries {
		dir := filepath.Join("/sys/block", e.Name())
		if _, err := os.Stat(filepath.Join(dir, "device")); err != nil {
			continue // a loop or RAM disk
		}
		sectors, err := strconv.ParseInt(sysfs(dir, "size"), 10, 64)
		if err != nil {
			return answer{}, err
		}
		line := fmt.Sprintf("%s size=%d readonly=%s", e.Name(), sectors*512, sysfs(dir, "ro"))
		if serial := sysfs(dir, "serial"); serial != "" {
			line += " serial=" + serial
		}
		a.lines = append(a.lines, line)
	}
	a.reply = fmt.Sprintf("disks=%d", len(a.lines))
	return a, nil
}

// sysfs reads an attribute; one that is not there is empty.
func sysfs(dir, name string) string {
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func (g *guest) writeDisk(args []string) (answer, error) {
	offset, err := strconv.ParseInt(args[1], 0, 64)
	if err != nil {
		return answer{}, err
	}
	data, err := hex.DecodeString(args[2])
	if err != nil {
		return answer{}, err
	}
	f, err := os.OpenFile(diskPath(args[0]), os.O_WRONLY, 0)
	if err != nil {
		return answer{}, err
	}
	_, err = f.WriteAt(data, offset)
	err = errors.Join(err, f.Sync(), f.Close())
	return answer{reply: fmt.Sprintf("bytes=%d", len(data))}, err
}

func (g *guest) readDisk(args []string) (answer, error) {
	offset, err := strconv.ParseInt(args[1], 0, 64)
	if err != nil {
		return answer{}, err
	}
	length, err := strconv.Atoi(args[2])
	if err != nil || length < 0 || length > 1<<16 {
		return answer{}, fmt.Errorf("length %q", args[2])
	}
	f, err := os.Open(diskPath(args[0]))
	if err != nil {
		return answer{}, err
	}
	defer f.Close()
	// From the disk, not from what an earlier read left in memory.
	_ = unix.IoctlSetInt(int(f.Fd()), unix.BLKFLSBUF, 0)
	data := make([]byte, length)
	n, err := f.ReadAt(data, offset)
	return answer{reply: hex.EncodeToString(data[:n])}, err
}

func diskPath(dev string) string {
	return filepath.Join("/dev", filepath.Base(dev))
}
