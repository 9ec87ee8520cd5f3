package launcher

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"vmrun/configs"
)

// addCPUs adds the guest's CPUs as its spec has them.
func (c *commandLine) addCPUs(g *configs.Guest) {
	text := strconv.Itoa(g.CPUs)
	if t := g.Topology; t != (configs.Topology{}) {
		text += fmt.Sprintf(",sockets=%d,cores=%d,threads=%d", t.Sockets, t.Cores, t.Threads)
	}
	c.add("-smp", text)
}

// addMemory adds the guest's memory. QEMU makes it of a file without a name, which
// takes no path, where others have a part in it or it is of huge pages.
func (c *commandLine) addMemory(g *configs.Guest) {
	size := fmt.Sprintf("%dM", g.Memory>>20)
	c.add("-m", size)
	if len(g.Shares) == 0 && g.Hugepages == 0 {
		return
	}
	object := options{{"", "memory-backend-memfd"}, {"id", "ram"}, {"size", size}, {"share", len(g.Shares) > 0}}
	if g.Hugepages != 0 {
		object.add("hugetlb", true)
		object.add("hugetlbsize", fmt.Sprintf("%dM", g.Hugepages>>20))
	}
	c.add("-object", object.line(), "-machine", "memory-backend=ram")
}

// addDevices adds what has come later than disks and NICs, and after them, so that
// they keep their places on the bus.
func (c *commandLine) addDevices(g *configs.Guest, fds *descriptors) {
	if g.TPM {
		c.add("-chardev", fmt.Sprintf("socket,id=%s,fd=%d", nameTPM, fds.add(nameTPM)),
			"-tpmdev", "emulator,id=tpm0,chardev="+nameTPM, "-device", platforms[g.Arch].tpm+",tpmdev=tpm0")
	}
	for i, s := range g.Shares {
		name := shareName(i)
		c.add("-chardev", fmt.Sprintf("socket,id=%s,fd=%d", name, fds.add(name)),
			"-device", fmt.Sprintf("vhost-user-fs-pci,chardev=%s,tag=%s", name, s.Tag))
	}
	if g.Watchdog.Action != configs.WatchdogOff {
		c.add("-device", "i6300esb", "-action", "watchdog="+watchdogAction(g.Watchdog.Action))
	}
	if g.Balloon {
		c.add("-device", "virtio-balloon-pci,free-page-reporting=on,deflate-on-oom=on")
	}
}

// watchdogAction is what QEMU does when the watchdog has expired. Its own poweroff
// ends it at once, with what it has not written to the disks' images yet; so it
// halts the guest, and the supervisor has it quit.
func watchdogAction(action configs.WatchdogAction) string {
	if action == configs.WatchdogPoweroff {
		return string(configs.WatchdogPause)
	}
	return string(action)
}

// describeCPUs is where each of the guest's CPUs may run.
func describeCPUs(list []configs.CPUSet) string {
	var words []string
	for i, set := range list {
		words = append(words, fmt.Sprintf("%d to %s", i, set))
	}
	return strings.Join(words, ", ")
}

// checkDevices holds the guest's devices against what the host has.
func (p *Plan) checkDevices(facts Facts) (errs configs.Errors) {
	g := p.Guest
	complain := func(key, format string, args ...any) { errs = append(errs, g.Errorf(key, format, args...)) }
	if g.TPM && facts.Swtpm == "" {
		complain("tpm", "swtpm is not installed: apt-get install swtpm")
	}
	if len(g.Shares) > 0 && facts.Virtiofsd == "" {
		complain("share", "virtiofsd is not installed: apt-get install virtiofsd, or before Debian 13 qemu-system-common")
	}
	for i := range g.Shares {
		if err := facts.Unshared[i]; err != nil {
			complain(fmt.Sprintf("share[%d].path", i), "%v", err)
		}
	}
	for i, set := range g.CPUAffinity {
		if n := slices.IndexFunc(set.CPUs(), facts.lacks); n >= 0 {
			complain(fmt.Sprintf("cpu_affinity[%d]", i), "this host has no CPU %d: lscpu -e lists them", set.CPUs()[n])
		}
	}
	if n := slices.IndexFunc(g.EmulatorAffinity.CPUs(), facts.lacks); n >= 0 {
		complain("emulator_affinity", "this host has no CPU %d: lscpu -e lists them", g.EmulatorAffinity.CPUs()[n])
	}
	if g.Hugepages != 0 {
		if err := facts.hugepagesFor(g); err != nil {
			complain("hugepages", "%v", err)
		}
	}
	return errs
}

func (f *Facts) lacks(cpu int) bool { return !slices.Contains(f.CPUs, cpu) }

// hugepagesDir is where the kernel tells of huge pages of a size, and is told how
// many there are to be (Documentation/admin-guide/mm/hugetlbpage.rst).
func hugepagesDir(size configs.Size) string {
	return fmt.Sprintf("/sys/kernel/mm/hugepages/hugepages-%dkB", size>>10)
}

// hugepagesFor says why the host has not enough huge pages for a guest, or returns
// nil.
func (f *Facts) hugepagesFor(g *configs.Guest) error {
	need := uint64(g.Memory / g.Hugepages)
	switch {
	case f.PagesErr != nil:
		return f.PagesErr
	case f.FreePages >= need:
		return nil
	}
	file := filepath.Join(hugepagesDir(g.Hugepages), "nr_hugepages")
	return fmt.Errorf("the guest needs %d pages of %s, and %d are free: reserve more: echo $(( $(cat %s) + %d )) > %[4]s",
		need, g.Hugepages, f.FreePages, file, need-f.FreePages)
}

// errNoPages says that a host has no huge pages of a size.
var errNoPages = errors.New("this host has no huge pages of that size: ls /sys/kernel/mm/hugepages lists those that it has")
