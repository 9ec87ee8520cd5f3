package launcher

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"vmrun/configs"
)

// descriptorDirs hold the descriptors of firmware: the distribution's, and those
// of the host's owner, which go before the former's of the same name (QEMU's
// docs/interop/firmware.json).
var descriptorDirs = []string{"/usr/share/qemu/firmware", "/etc/qemu/firmware"}

const maxDescriptor = 64 << 10

// firmwarePackages are those of Debian that have it.
var firmwarePackages = map[configs.Arch]string{configs.ArchX86: "ovmf", configs.ArchARM: "qemu-efi-aarch64"}

// findFirmware returns the build that a guest boots by, nil for QEMU's BIOS.
func findFirmware(g *configs.Guest) (*firmware, error) {
	if g.Firmware != configs.FirmwareUEFI {
		return nil, nil
	}
	paths := map[string]string{}
	for _, dir := range descriptorDirs {
		found, _ := filepath.Glob(filepath.Join(dir, "*.json"))
		for _, path := range found {
			paths[filepath.Base(path)] = path
		}
	}
	var names []string
	for name := range paths {
		names = append(names, name)
	}
	slices.Sort(names) // the order of preference
	for _, name := range names {
		data, err := readBounded(paths[name], maxDescriptor)
		if err != nil {
			continue
		}
		f, err := firmwareFor(g, data)
		if err == nil && isThere(f.code.path) && isThere(f.template.path) {
			return &f, nil
		}
	}
	what, key := "UEFI", "firmware"
	if g.SecureBoot {
		what, key = "UEFI with secure boot and keys", "secure_boot"
	}
	return nil, g.Errorf(key, "the host has no %s for machine %s, by what %s says: apt-get install %s",
		what, machineOf(g), descriptorDirs[0], firmwarePackages[g.Arch])
}

func isThere(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// size is how many bytes of memory QEMU keeps the firmware in.
func (f *firmware) size() configs.Size {
	var n configs.Size
	for _, path := range []string{f.code.path, f.template.path} {
		if info, err := os.Stat(path); err == nil {
			n += configs.Size(info.Size())
		}
	}
	return n
}

// openFirmware opens the code and the guest's variables, which are made at the
// guest's first start. They stay root's.
func (l *life) openFirmware(context.Context) error {
	f, vars := l.plan.firmware, l.plan.vars
	if err := l.openImage(fdCode, configs.Disk{Path: f.code.path, Format: f.code.format, Readonly: true}); err != nil {
		return err
	}
	made, err := makeVars(f.template.path, vars)
	if err != nil {
		return err
	}
	if made {
		l.undoUnlessCommitted("firmware", func() error { return removeFile(vars) })
	}
	disk := configs.Disk{Path: vars, Format: f.template.format}
	if err := fitVars(disk, f.template); err != nil {
		return fmt.Errorf("%w: to begin with new variables: rm %s", err, vars)
	}
	return l.openImage(fdVars, disk)
}

// fitVars says why variables are not of this firmware, as after a change of arch.
func fitVars(vars configs.Disk, template image) error {
	has, err := readChain(vars)
	if err != nil {
		return err
	}
	wants, err := readChain(configs.Disk{Path: template.path, Format: template.format})
	if err == nil && has[0].Size != wants[0].Size {
		err = fmt.Errorf("%s has %d bytes, and this firmware's variables %d", vars.Path, has[0].Size, wants[0].Size)
	}
	return err
}

// makeVars copies the template of the variables, whole or not at all, unless there
// are some already.
func makeVars(template, path string) (made bool, err error) {
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		return false, err
	}
	unfinished := path + ".new"
	if err := removeFile(unfinished); err != nil { // of a predecessor that was killed
		return false, err
	}
	defer removeFile(unfinished)
	if err := copySparse(template, unfinished); err != nil {
		return false, err
	}
	err = moveNew(unfinished, path)
	return err == nil, err
}

// copySparse copies a file for root alone, without room for what is zeros: a
// template for aarch64 has 64 MiB of them.
func copySparse(from, to string) (err error) {
	src, err := openInput(from, os.O_RDONLY, unix.S_IFREG)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	var block, zeros [64 << 10]byte
	for at := int64(0); ; at += int64(len(block)) {
		n, err := io.ReadFull(src, block[:])
		if !bytes.Equal(block[:n], zeros[:n]) {
			if _, err := dst.WriteAt(block[:n], at); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return errors.Join(dst.Truncate(at+int64(n)), dst.Sync())
		case err != nil:
			return err
		}
	}
}
