package launcher

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"vmrun/configs"
)

var kvmDevice = "/dev/kvm" // tests have others where the kernel has no KVM

// probeTimeout is how long firmware gets to say its first word under KVM. Where
// KVM works that takes under 100 ms.
const probeTimeout = 3 * time.Second

// chooseAccel settles accel = "auto". A /dev/kvm that exists may still not
// work: it may be forbidden, refuse the CPU model, or run firmware and hang
// (nested and para-virtual KVM do), so firmware is really run once. The answer
// is kept for as long as QEMU, the kernel and the CPU model stay the same.
func chooseAccel(ctx context.Context, g *configs.Guest, qemu string) (configs.Accel, error) {
	switch g.Accel {
	case configs.AccelTCG:
		return configs.AccelTCG, nil
	case configs.AccelKVM:
		if err := kvmWorks(ctx, g, qemu); err != nil {
			return "", g.Errorf("accel", "kvm does not work here: %v: use accel = \"auto\" or \"tcg\"", err)
		}
		return configs.AccelKVM, nil
	}
	if kvmWorks(ctx, g, qemu) != nil {
		return configs.AccelTCG, nil
	}
	return configs.AccelKVM, nil
}

// errForeign says that a guest has another architecture than the host.
var errForeign = errors.New("KVM runs guests of the host's own architecture only")

func kvmWorks(ctx context.Context, g *configs.Guest, qemu string) error {
	if g.Arch != "" && g.Arch != archOf(runtime.GOARCH) {
		return errForeign
	}
	f, err := os.OpenFile(kvmDevice, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	f.Close()
	cpu := g.CPU
	if cpu == "" {
		cpu = "host"
	}
	key, err := probeKey(qemu, cpu)
	if err != nil {
		return err
	}
	cache := "/run/vmrun.kvm-" + key
	if verdict, ok := keptVerdict(cache); ok {
		return probeError(verdict)
	}
	verdict := probeKVM(ctx, qemu, cpu)
	if ctx.Err() != nil {
		return ctx.Err() // the probe was cut short: it says nothing
	}
	// A verdict that cannot be kept only costs the next start a probe.
	_ = renameio.WriteFile(cache, []byte(verdict), 0o600)
	return probeError(verdict)
}

// keptVerdict reads an earlier probe's verdict. A bad one may have had its reason
// in a busy host, so it is believed for an hour only.
func keptVerdict(cache string) (string, bool) {
	info, err := os.Stat(cache)
	if err != nil {
		return "", false
	}
	data, err := os.ReadFile(cache)
	if err != nil || len(data) > 0 && time.Since(info.ModTime()) > time.Hour {
		return "", false
	}
	return string(data), true
}

func probeError(verdict string) error {
	if verdict == "" {
		return nil
	}
	return errors.New(verdict)
}

// probeKey names everything that the probe's result depends on.
func probeKey(qemu, cpu string) (string, error) {
	info, err := os.Stat(qemu)
	if err != nil {
		return "", err
	}
	what := fmt.Sprintf("%s %d %v %s %s", qemu, info.Size(), info.ModTime().UnixNano(), cpu, bootID())
	return fmt.Sprintf("%x", sha256.Sum256([]byte(what)))[:16], nil
}

// probes are the options of a machine without any guest, whose firmware says
// something at once. On x86 that is SeaBIOS on its debug console (port 0x402);
// elsewhere QEMU has none that is so quick, and it is probeProgram.
var probes = map[configs.Arch][]string{
	configs.ArchX86: {"-machine", "q35", "-device", "isa-debugcon,iobase=0x402,chardev=out"},
	configs.ArchARM: {"-machine", "virt,gic-version=max", "-serial", "chardev:out", "-bios", "/dev/fd/3"},
}

// probeProgram says "V" on the serial port of aarch64's virt (hw/arm/virt.c,
// VIRT_UART).
var probeProgram = []uint32{
	0xd2a12000, // mov x0, #0x09000000
	0x52800ac1, // mov w1, #'V'
	0xb9000001, // str w1, [x0]
	0x14000000, // b .
}

// probeFile is probeProgram as a file.
func probeFile() (*os.File, error) {
	fd, err := unix.MemfdCreate("probe", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "probe")
	return f, binary.Write(f, binary.LittleEndian, probeProgram)
}

// probeKVM starts a machine without any guest and waits for its firmware's first
// word. It returns "" when that worked, or what did not.
func probeKVM(ctx context.Context, qemu, cpu string) string {
	return probeAccel(ctx, archOf(runtime.GOARCH), qemu, "kvm", cpu)
}

func probeAccel(ctx context.Context, arch configs.Arch, qemu, accel, cpu string) string {
	program, err := probeFile()
	if err != nil {
		return err.Error()
	}
	defer program.Close()
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	var stderr strings.Builder
	args := []string{"-nodefaults", "-no-user-config", "-display", "none", "-accel", accel, "-cpu", cpu, "-m", "64M", "-chardev", "stdio,id=out"}
	cmd := exec.CommandContext(ctx, qemu, append(args, probes[arch]...)...)
	cmd.ExtraFiles = []*os.File{program}
	cmd.Stderr = &stderr
	cmd.WaitDelay = time.Second // for a wrapper's child that keeps the output open
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err.Error()
	}
	if err := cmd.Start(); err != nil {
		return err.Error()
	}
	if pipe, ok := out.(*os.File); ok { // which that child may keep open for good
		deadline, _ := ctx.Deadline()
		pipe.SetReadDeadline(deadline.Add(100 * time.Millisecond)) // ctx is to be the first
	}
	var first [1]byte
	n, _ := out.Read(first[:])
	cmd.Process.Kill()
	waitErr := cmd.Wait()
	switch {
	case n > 0:
		return ""
	case ctx.Err() != nil:
		return fmt.Sprintf("firmware under KVM with -cpu %s said nothing for %v", cpu, probeTimeout)
	}
	return fmt.Sprintf("QEMU with -accel %s -cpu %s: %v: %s", accel, cpu, waitErr, firstLine([]byte(stderr.String())))
}

// firstLine is the first line of a program's output that says something.
func firstLine(out []byte) string {
	for line := range strings.Lines(string(out)) {
		if line = strings.TrimSpace(line); line != "" {
			return line
		}
	}
	return "it said nothing"
}
