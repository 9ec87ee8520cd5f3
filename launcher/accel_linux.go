package launcher

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"github.com/google/renameio/v2"

	"vmrun/configs"
)

var kvmDevice = "/dev/kvm" // tests have others where the kernel has no KVM

// probeTimeout is how long a short program gets under KVM. Where a processor runs it,
// that takes QEMU's own 100 ms; a KVM that emulates takes minutes.
const probeTimeout = 3 * time.Second

// chooseAccel settles accel = "auto". A /dev/kvm that exists may still not
// work: it may be forbidden, refuse the CPU model, or run firmware and then hang,
// or emulate each instruction (para-virtual KVM does), so a program is really run
// once. The answer is kept for as long as QEMU, the kernel and the CPU model stay
// the same.
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
	what := fmt.Sprintf("loop %s %d %v %s %s", qemu, info.Size(), info.ModTime().UnixNano(), cpu, bootID())
	return fmt.Sprintf("%x", sha256.Sum256([]byte(what)))[:16], nil
}

// trialMachine is a machine without any guest, and what it runs in place of firmware: a loop
// of 16 million turns, and then a word.
type trialMachine struct {
	options []string
	program []byte
}

// probes are the machines' options with the program as descriptor 3, and where the
// word is said: on x86 on the debug console of firmware (port 0x402), elsewhere on the
// serial port (hw/arm/virt.c, VIRT_UART).
var probes = map[configs.Arch]trialMachine{
	configs.ArchX86: {[]string{"-machine", "q35", "-device", "isa-debugcon,iobase=0x402,chardev=out", "-bios", "/dev/fd/3"}, probeX86()},
	configs.ArchARM: {[]string{"-machine", "virt,gic-version=max", "-serial", "chardev:out", "-bios", "/dev/fd/3"}, []byte{
		0x00, 0x20, 0xa0, 0xd2, // mov x0, #0x01000000
		0x00, 0x04, 0x00, 0xf1, // 1: subs x0, x0, #1
		0xe1, 0xff, 0xff, 0x54, // b.ne 1b
		0x00, 0x20, 0xa1, 0xd2, // mov x0, #0x09000000
		0xc1, 0x0a, 0x80, 0x52, // mov w1, #'V'
		0x01, 0x00, 0x00, 0xb9, // str w1, [x0]
		0x00, 0x00, 0x00, 0x14, // b .
	}},
}

// probeX86 is the last 64 KiB below 4 GiB. Its program makes the processor a 32-bit one
// first: KVM may have to emulate a 16-bit one.
func probeX86() []byte {
	image := make([]byte, 64<<10)
	copy(image[0xff00:], []byte{
		0xfa,                                     // cli
		0x2e, 0x66, 0x0f, 0x01, 0x16, 0x40, 0xff, // lgdt cs:0xff40
		0x0f, 0x20, 0xc0, // mov eax, cr0
		0x0c, 0x01, // or al, 1
		0x0f, 0x22, 0xc0, // mov cr0, eax
		0x66, 0xea, 0x18, 0xff, 0xff, 0xff, 0x08, 0x00, // jmp 8:0xffffff18
		0xb9, 0x00, 0x00, 0x00, 0x01, // mov ecx, 0x01000000
		0x49,       // 1: dec ecx
		0x75, 0xfd, // jnz 1b
		0x66, 0xba, 0x02, 0x04, // mov dx, 0x402
		0xb0, 'V', // mov al, 'V'
		0xee,       // out dx, al
		0xf4,       // 2: hlt
		0xeb, 0xfd, // jmp 2b
	})
	copy(image[0xff38:], []byte{0xff, 0xff, 0, 0, 0, 0x9b, 0xcf, 0}) // all of memory, code
	copy(image[0xff40:], []byte{15, 0, 0x30, 0xff, 0xff, 0xff})      // where the table is, at 0xffffff30
	copy(image[0xfff0:], []byte{0xe9, 0x0d, 0xff})                   // where the processor begins: jmp 0xff00
	return image
}

// probeFile is a probe's program as a file.
func probeFile(program []byte) (*os.File, error) {
	f, err := memoryFile("probe", 0)
	if err == nil {
		_, err = f.Write(program)
	}
	return f, err
}

// probeKVM starts a machine without any guest and waits for its first word. It
// returns "" when that worked, or what did not.
func probeKVM(ctx context.Context, qemu, cpu string) string {
	return probeAccel(ctx, archOf(runtime.GOARCH), qemu, "kvm", cpu)
}

func probeAccel(ctx context.Context, arch configs.Arch, qemu, accel, cpu string) string {
	probe := probes[arch]
	program, err := probeFile(probe.program)
	if err != nil {
		return err.Error()
	}
	defer program.Close()
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	var stderr strings.Builder
	args := []string{"-nodefaults", "-no-user-config", "-display", "none", "-accel", accel, "-cpu", cpu, "-m", "64M", "-chardev", "stdio,id=out"}
	cmd := exec.CommandContext(ctx, qemu, append(args, probe.options...)...)
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
		return fmt.Sprintf("a short program under KVM with -cpu %s did not end within %v: it hangs, or is emulated", cpu, probeTimeout)
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
