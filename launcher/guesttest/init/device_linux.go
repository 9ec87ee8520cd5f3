package main

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mount makes the directory, too.
func (g *guest) mount(args []string) (answer, error) {
	if err := os.MkdirAll(args[2], 0o755); err != nil {
		return answer{}, err
	}
	return answer{}, unix.Mount(args[1], args[2], args[0], 0, "")
}

// file reads, writes, links to or sets the mode of a file.
func (g *guest) file(args []string) (answer, error) {
	verb, path, rest := args[0], args[1], strings.Join(args[2:], " ")
	switch verb {
	case "read":
		data, err := os.ReadFile(path)
		return answer{reply: strconv.Quote(string(data))}, err
	case "write":
		return answer{}, os.WriteFile(path, []byte(rest), 0o644)
	case "link":
		return answer{}, os.Symlink(rest, path)
	case "mode":
		mode, err := strconv.ParseUint(rest, 8, 32)
		if err != nil {
			return answer{}, err
		}
		return answer{}, unix.Chmod(path, uint32(mode))
	case "owner":
		uid, err := strconv.Atoi(rest)
		if err != nil {
			return answer{}, err
		}
		return answer{}, os.Chown(path, uid, uid)
	case "node":
		return answer{}, unix.Mknod(path, unix.S_IFBLK|0o600, int(unix.Mkdev(7, 0)))
	}
	return answer{}, fmt.Errorf("%s: read, write, link, mode, owner or node", verb)
}

// tpm hands a command to the TPM and answers with its response.
func (g *guest) tpm(args []string) (answer, error) {
	command, err := hex.DecodeString(args[0])
	if err != nil {
		return answer{}, err
	}
	f, err := os.OpenFile("/dev/tpm0", os.O_RDWR, 0)
	if err != nil {
		return answer{}, err
	}
	defer f.Close()
	if _, err := f.Write(command); err != nil {
		return answer{}, err
	}
	response := make([]byte, 4096)
	n, err := f.Read(response)
	return answer{reply: hex.EncodeToString(response[:n])}, err
}

// watchdog starts an i6300esb, for which Debian's cloud kernel has no driver, and
// never feeds it (drivers/watchdog/i6300esb.c). Each of its two stages takes that
// many milliseconds.
func (g *guest) watchdog(args []string) (answer, error) {
	wait, err := strconv.ParseUint(args[0], 10, 16)
	if err != nil {
		return answer{}, err
	}
	dir, err := findPCI("0x8086", "0x25ab")
	if err != nil {
		return answer{}, err
	}
	if err := os.WriteFile(filepath.Join(dir, "enable"), []byte("1"), 0); err != nil {
		return answer{}, err
	}
	f, err := os.OpenFile(filepath.Join(dir, "resource0"), os.O_RDWR, 0)
	if err != nil {
		return answer{}, err
	}
	defer f.Close()
	mem, err := unix.Mmap(int(f.Fd()), 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return answer{}, err
	}
	start, err := strconv.ParseUint(strings.Fields(sysfs(dir, "resource"))[0], 0, 64)
	if err != nil {
		return answer{}, err
	}
	first := int(start) % os.Getpagesize() // its registers need not begin a page
	set := func(register int, value uint32) {
		for _, w := range []struct {
			register int
			value    uint32
		}{{0x0c, 0x80}, {0x0c, 0x86}, {register, value}} { // unlocked by the first two
			atomic.StoreUint32((*uint32)(unsafe.Pointer(&mem[first+w.register])), w.value)
		}
	}
	set(0x00, uint32(wait)) // of the 1 kHz clock
	set(0x04, uint32(wait))
	config, err := os.OpenFile(filepath.Join(dir, "config"), os.O_RDWR, 0)
	if err != nil {
		return answer{}, err
	}
	_, err = config.WriteAt(binary.LittleEndian.AppendUint16(nil, 0x03), 0x60) // no interrupt; reboot; 1 kHz
	if err == nil {
		_, err = config.WriteAt([]byte{2}, 0x68) // enabled
	}
	return answer{}, errors.Join(err, config.Close())
}

func findPCI(vendor, device string) (string, error) {
	dirs, err := filepath.Glob("/sys/bus/pci/devices/*")
	for _, dir := range dirs {
		if sysfs(dir, "vendor") == vendor && sysfs(dir, "device") == device {
			return dir, nil
		}
	}
	return "", errors.Join(errors.New("no such PCI device"), err)
}
