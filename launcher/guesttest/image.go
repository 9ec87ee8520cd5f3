package guesttest

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cavaliergopher/cpio"
)

// baseModules are what every guest loads: the NICs and disks it is tested with,
// the power button, and the device that tells QEMU of a panic.
var baseModules = map[string][]string{
	"amd64": {"virtio_pci", "virtio_net", "virtio_blk", "button", "pvpanic-pci", "vmxnet3"},
	"arm64": {"virtio_pci", "virtio_net", "virtio_blk"}, // the button is built in, and no driver is there for pvpanic
}

// module is one kernel module on its way into the initramfs.
type module struct {
	name string // as the kernel writes it, with _ for -
	file []byte
}

// readModules returns the modules named and those that they need from dir, none
// before what it needs.
func readModules(dir string, names []string) ([]module, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("modules: %w", err)
	}
	files := make(map[string]string)
	for _, e := range entries {
		files[canonical(strings.TrimSuffix(e.Name(), ".ko"))] = filepath.Join(dir, e.Name())
	}
	var sorted []module
	seen := make(map[string]bool)
	var visit func(name string) error
	visit = func(name string) error {
		name = canonical(name)
		if seen[name] {
			return nil
		}
		seen[name] = true
		file, err := os.ReadFile(files[name])
		if err != nil {
			return fmt.Errorf("module %s: %w", name, err)
		}
		needs, err := dependencies(file)
		if err != nil {
			return fmt.Errorf("module %s: %w", name, err)
		}
		for _, n := range needs {
			if err := visit(n); err != nil {
				return err
			}
		}
		sorted = append(sorted, module{name: name, file: stripSignature(file)})
		return nil
	}
	for _, name := range names {
		if err := visit(name); err != nil {
			return nil, err
		}
	}
	return sorted, nil
}

func canonical(name string) string {
	return strings.ReplaceAll(name, "-", "_")
}

// dependencies reads what a module says of itself in its section .modinfo.
func dependencies(ko []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(ko))
	if err != nil {
		return nil, err
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, errors.New("no .modinfo")
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	for _, field := range strings.Split(string(info), "\x00") {
		if list, ok := strings.CutPrefix(field, "depends="); ok && list != "" {
			return strings.Split(list, ","), nil
		}
	}
	return nil, nil
}

// stripSignature takes off what follows the module proper (kernel,
// scripts/sign-file.c): checking it costs an emulated processor more than
// loading the module, and the kernel takes unsigned ones.
func stripSignature(ko []byte) []byte {
	const magic = "~Module signature appended~\n"
	const infoLength = 12 // struct module_signature, whose last word is the length
	body, ok := bytes.CutSuffix(ko, []byte(magic))
	if !ok || len(body) < infoLength {
		return ko
	}
	n := body[len(body)-4:]
	length := int(n[0])<<24 | int(n[1])<<16 | int(n[2])<<8 | int(n[3])
	if length > len(body)-infoLength {
		return ko
	}
	return body[:len(body)-infoLength-length]
}

// archive returns the initramfs: an uncompressed cpio archive, which the guest
// unpacks sooner than QEMU could have saved by loading less.
func archive(init []byte, modules []module, extra map[string][]byte) ([]byte, error) {
	var out bytes.Buffer
	w := cpio.NewWriter(&out)
	made := map[string]bool{".": true}
	var add func(name string, mode cpio.FileMode, data []byte) error
	add = func(name string, mode cpio.FileMode, data []byte) error {
		if parent := path.Dir(name); !made[parent] {
			if err := add(parent, cpio.TypeDir|0o755, nil); err != nil {
				return err
			}
		}
		made[name] = true
		if err := w.WriteHeader(&cpio.Header{Name: name, Mode: mode, Size: int64(len(data)), Links: 1}); err != nil {
			return fmt.Errorf("initramfs: %s: %w", name, err)
		}
		if _, err := w.Write(data); err != nil {
			return fmt.Errorf("initramfs: %s: %w", name, err)
		}
		return nil
	}
	errs := []error{add("init", cpio.TypeReg|0o755, init)}
	var load strings.Builder
	for _, m := range modules {
		errs = append(errs, add("modules/"+m.name+".ko", cpio.TypeReg|0o644, m.file))
		load.WriteString(m.name + ".ko\n")
	}
	errs = append(errs, add("modules/load", cpio.TypeReg|0o644, []byte(load.String())))
	for _, name := range sortedKeys(extra) {
		errs = append(errs, add(strings.TrimPrefix(path.Clean(name), "/"), cpio.TypeReg|0o755, extra[name]))
	}
	errs = append(errs, w.Close())
	return out.Bytes(), errors.Join(errs...)
}

func sortedKeys(m map[string][]byte) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// isMissing reports whether err says that a file is not there.
func isMissing(err error) bool {
	return errors.Is(err, fs.ErrNotExist)
}
