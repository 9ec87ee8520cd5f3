package configs

import (
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"
)

const (
	defaultMemory      = 1 * gib
	defaultLogSize     = 4 * mib
	defaultTimeout     = 60 * time.Second
	defaultQuitTimeout = 5 * time.Second

	defaultDelay        = 1 * time.Second
	defaultMaxDelay     = 1 * time.Minute
	defaultRestarts     = 5
	defaultRestartsTime = 10 * time.Minute

	minMemory  = 16 * mib
	minLogSize = 4 * kib
	maxLogSize = 1 * gib // it lies in /run, which is memory
	maxSpan    = 24 * time.Hour

	defaultReadyTimeout = 5 * time.Minute

	// A guest that ends at once and is started at once keeps the host busy.
	minDelay    = 100 * time.Millisecond // systemd's default
	maxRestarts = 1000                   // the supervisor remembers when each was
	minInterval = 1 * time.Second

	// More processors need an interrupt controller with 32-bit ids and an
	// IOMMU that remaps them, which a guest does not get by default.
	maxCPUs = 255

	// maxCmdline is COMMAND_LINE_SIZE of Linux on x86 and arm64
	// (arch/x86/include/asm/setup.h) without its NUL.
	maxCmdline = 2047

	maxBootIndex = math.MaxInt32 // QEMU's type
)

// resolver turns a raw spec into a Guest and reports every broken rule.
type resolver struct {
	*report
	dir     string // absolute; relative paths start here
	machine string
	arch    Arch
}

// resolve returns the guest of a raw spec. It is of use only when nothing was
// reported.
func resolve(r *report, dir string, raw *rawGuest) *Guest {
	c := &resolver{report: r, dir: dir}
	g := &Guest{
		Name:       c.name(raw.Name),
		UUID:       c.uuid(raw.UUID),
		CPUs:       int(c.integer("cpus", raw.CPUs, 1, 1, maxCPUs)),
		Memory:     c.memory(raw.Memory),
		TPM:        isTrue(raw.TPM),
		Watchdog:   c.watchdog(raw.Watchdog),
		Arch:       oneOf(c, "arch", "an architecture", raw.Arch, "", arches),
		Machine:    c.word("machine", raw.Machine, "._-", `options go into qemu_args, as ["-machine", "smm=off"]`),
		Firmware:   oneOf(c, "firmware", "a kind of firmware", raw.Firmware, "", firmwares),
		SecureBoot: isTrue(raw.SecureBoot),
		Display:    oneOf(c, "display", "a display", raw.Display, DisplayNone, displays),
		Accel:      oneOf(c, "accel", "an accelerator", raw.Accel, AccelAuto, accels),
		CPU:        c.word("cpu", raw.CPU, "._-+=,", `write a model and its features, as "host,-vmx"`),
		QEMU:       c.qemu(raw.QEMU),
		QEMUArgs:   raw.QEMUArgs,
		Boot:       c.boot(raw.Boot),
		Console:    c.console(raw.Console),
		Stop:       c.stop(raw.Stop),
		Restart:    c.restart(raw.Restart),
		Ready:      c.ready(raw.Ready),
		Group:      c.group(raw.Group),
		Confine:    c.confine(raw.Confine),
		source:     r.src,
	}
	c.machine, c.arch = g.Machine, g.Arch
	g.Autostart = raw.Autostart != nil && *raw.Autostart
	g.Limits = c.limits(raw.Limits, g.Memory)
	c.board(g)
	c.processors(g, raw)
	c.memoryDevices(g, raw)
	for i, arg := range raw.QEMUArgs {
		c.oneLine(indexKey("qemu_args", i), arg)
	}
	for i := range raw.Disks {
		g.Disks = append(g.Disks, c.disk(indexKey("disk", i), &raw.Disks[i]))
	}
	for i := range raw.NICs {
		g.NICs = append(g.NICs, c.nic(indexKey("nic", i)+".", &raw.NICs[i], g.CPUs))
	}
	for i := range raw.Shares {
		g.Shares = append(g.Shares, c.share(indexKey("share", i), &raw.Shares[i]))
	}
	c.sharesTogether(g.Shares)
	g.CloudInit = c.cloudInit(raw.CloudInit, g.Name)
	g.Credentials = c.credentials(raw.Credentials)
	c.cloudNetwork(g)
	c.disksTogether(g)
	c.nicsTogether(g.NICs)
	c.room(g)
	c.bootOrder(g)
	return g
}

// name checks a guest's name, or takes it from the file's.
func (c *resolver) name(name *string) string {
	if name != nil {
		if err := CheckName(*name); err != nil {
			c.addf("name", "%v", err)
		}
		return *name
	}
	if c.src.file == "" {
		c.addf("name", `missing: a spec that is not a file needs one, as name = "web1"`)
		return ""
	}
	base := filepath.Base(c.src.file)
	implied := strings.TrimSuffix(base, ".toml")
	if err := CheckName(implied); err != nil {
		c.addf("name", `the file's name cannot be the guest's (%v): set one, as name = "web1"`, err)
	}
	return implied
}

// CheckName says why a text cannot be a guest's name, or returns nil.
func CheckName(name string) error {
	switch {
	case name == "":
		return errors.New(`a name cannot be empty: write 1 to 48 letters, digits, ".", "_" or "-"`)
	case len(name) > 48:
		return fmt.Errorf("%s has %d characters: use at most 48", quote(name), len(name))
	case !isWord(name, "._-"):
		return fmt.Errorf(`%s is not a name: use letters, digits, ".", "_" and "-", with a letter or digit first`, quote(name))
	case strings.HasSuffix(name, ".toml"):
		return fmt.Errorf("%s would be taken for a file: leave out .toml", quote(name))
	}
	return nil
}

// isWord tells whether s consists of ASCII letters, digits and the extra
// characters, and starts with a letter or digit.
func isWord(s, extra string) bool {
	for i := range len(s) {
		b := s[i]
		alnum := b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b >= '0' && b <= '9'
		if !alnum && (i == 0 || strings.IndexByte(extra, b) < 0) {
			return false
		}
	}
	return s != ""
}

func (c *resolver) uuid(text *string) uuid.UUID {
	if text == nil {
		return uuid.Nil
	}
	id, err := uuid.Parse(*text)
	if err != nil || len(*text) != 36 { // uuid.Parse takes braces and URNs too
		c.addf("uuid", `%s is not a UUID: write 32 hexadecimal digits in groups of 8-4-4-4-12 (uuidgen makes them), or leave it out`, quote(*text))
		return uuid.Nil
	}
	if id == uuid.Nil {
		c.addf("uuid", "the UUID of zeros is nobody's: leave the key out to have one derived")
	}
	return id
}

func (c *resolver) memory(text *sizeText) Size {
	size := c.size("memory", text, defaultMemory)
	switch {
	case size < minMemory:
		c.addf("memory", "%s is too little to boot anything: use at least %s", size, minMemory)
	case size%mib != 0:
		c.addf("memory", "%s is not a multiple of 1MiB: use %s", size, (size/mib+1)*mib)
	}
	return size
}

// word checks a value that becomes part of a QEMU option: it is a plain word
// with some extra characters, so that it cannot become another option.
func (c *resolver) word(key string, text *string, extra, hint string) string {
	if text == nil {
		return ""
	}
	if *text == "" {
		c.addf(key, "empty: leave the key out for the default")
		return ""
	}
	if !isWord(*text, extra) {
		c.addf(key, "%s may hold only letters, digits and any of %q, with a letter or digit first: %s",
			quote(*text), extra, hint)
	}
	return *text
}

// qemu checks the binary's name; with a slash in it it is a path.
func (c *resolver) qemu(text *string) string {
	if text == nil || strings.Contains(*text, "/") {
		return c.path("qemu", text)
	}
	if *text == "" || strings.ContainsAny(*text, "\x00\n") {
		c.addf("qemu", `%s is no program: write a path, or a name as "qemu-system-x86_64"`, quote(*text))
	}
	return *text
}

func (c *resolver) boot(raw *rawBoot) Boot {
	if raw == nil {
		return Boot{}
	}
	b := Boot{
		Kernel: c.path("boot.kernel", raw.Kernel),
		Initrd: c.path("boot.initrd", raw.Initrd),
	}
	noKernel := raw.Kernel == nil && !c.isKnown("boot.kernel")
	if noKernel && raw.Initrd != nil {
		c.addf("boot.initrd", "an initrd is handed to a kernel: add kernel to [boot], or remove initrd")
	}
	if raw.Cmdline == nil {
		return b
	}
	b.Cmdline = *raw.Cmdline
	if noKernel {
		c.addf("boot.cmdline", "a command line is handed to a kernel: add kernel to [boot], or remove cmdline")
	}
	if n := len(b.Cmdline); n > maxCmdline {
		c.addf("boot.cmdline", "%d bytes long: the kernel reads only %d, so shorten it", n, maxCmdline)
	}
	c.oneLine("boot.cmdline", b.Cmdline)
	return b
}

func (c *resolver) console(raw *rawConsole) Console {
	if raw == nil {
		return Console{LogSize: defaultLogSize}
	}
	size := c.size("console.log_size", raw.LogSize, defaultLogSize)
	if size != 0 && (size < minLogSize || size > maxLogSize) {
		c.addf("console.log_size", `%s is out of range: use %s to %s, or "0" to keep no log`, size, minLogSize, maxLogSize)
	}
	return Console{LogSize: size}
}

func (c *resolver) stop(raw *rawStop) Stop {
	if raw == nil {
		raw = &rawStop{}
	}
	return Stop{
		Timeout:     c.span("stop.timeout", raw.Timeout, defaultTimeout),
		QuitTimeout: c.span("stop.quit_timeout", raw.QuitTimeout, defaultQuitTimeout),
	}
}

func (c *resolver) restart(raw *rawRestart) Restart {
	if raw == nil {
		raw = &rawRestart{}
	} else if raw.Policy == nil && *raw != (rawRestart{}) {
		c.addf("restart.policy", `missing: nothing is restarted without one: add policy = "on-failure" or "always", or "no" to keep the rest for later`)
	}
	r := Restart{
		Policy:   oneOf(c, "restart.policy", "a restart policy", raw.Policy, RestartNo, policies),
		Delay:    c.span("restart.delay", raw.Delay, defaultDelay),
		MaxDelay: c.span("restart.max_delay", raw.MaxDelay, defaultMaxDelay),
		Limit:    int(c.integer("restart.limit", raw.Limit, defaultRestarts, 0, maxRestarts)),
		Interval: c.span("restart.interval", raw.Interval, defaultRestartsTime),
	}
	if r.Delay < minDelay {
		c.addf("restart.delay", "%v is too short: a guest that ends at once would keep the host busy: use at least %v", r.Delay, minDelay)
	}
	if r.Interval < minInterval {
		c.addf("restart.interval", "%v is too short to count restarts in: use at least %v", r.Interval, minInterval)
	}
	if r.Delay > r.MaxDelay && !c.isKnown("restart.max_delay") {
		c.addf("restart.delay", "%v is longer than max_delay, %v: use a shorter delay, or a longer max_delay", r.Delay, r.MaxDelay)
	}
	return r
}

// bootOrder checks that no two devices claim the same place in it.
func (c *resolver) bootOrder(g *Guest) {
	owners := map[int]string{}
	check := func(device string, index int) {
		if index < 0 {
			return
		}
		key := device + ".boot_index"
		if index == 0 && g.Boot.Kernel != "" {
			c.addf(key, "0 is the kernel's, which boots first: use 1 or more, or remove boot_index or [boot]")
			return
		}
		if owner, ok := owners[index]; ok {
			c.addf(key, "%d is %s's already: give each device its own, lowest first", index, owner)
			return
		}
		owners[index] = device
	}
	for i, d := range g.Disks {
		check(indexKey("disk", i), d.BootIndex)
	}
	for i, n := range g.NICs {
		check(indexKey("nic", i), n.BootIndex)
	}
	// With arguments of its owner's the guest may boot what is not seen here.
	if len(g.Disks) > 0 || g.Boot.Kernel != "" || len(owners) > 0 || len(g.QEMUArgs) > 0 {
		return
	}
	if !c.isClean() {
		return // it may have been meant to boot what is wrong
	}
	c.addf("", "nothing to boot: add a [[disk]], or a kernel in [boot], or boot_index = 0 to a [[nic]] to boot from the network")
}
