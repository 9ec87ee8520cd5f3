package launcher

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vmrun/configs"
	"vmrun/netsetup"
	"vmrun/qmp"
)

const (
	// greetTimeout is how long QEMU may take to load and greet.
	greetTimeout = 15 * time.Second
	// addressTimeout is how long the kernel may take to remove an earlier
	// owner of a MAC; its namespace is gone within 100 ms of its QEMU.
	addressTimeout = time.Second
)

// steps lists the acts of a start in order. The text of each is what `vmrun
// plan` shows.
func steps(p *Plan, facts Facts, paused bool) []Step {
	var list []Step
	add := func(name string, apply func(*life, context.Context) error, format string, args ...any) {
		list = append(list, Step{Name: name, Text: fmt.Sprintf(format, args...), apply: apply})
	}
	add("record", (*life).recordStart, "write the state file")
	if keepsState(p.Guest) {
		add("state make", (*life).makeState, "make %s, if it is not there", facts.State)
	}
	if p.firmware != nil {
		add("firmware open", (*life).openFirmware, "open %s, and the guest's variables in %s, a copy of %s at first",
			p.firmware.code.path, p.vars, p.firmware.template.path)
	}
	addInputs(p, facts, add)
	addSeedSteps(p, facts.Seed, add)
	add("monitor listen", listen(fdMonitor, fileMonitor), "listen on %s for QEMU's monitor", fileMonitor)
	add("console listen", listen(fdConsole, fileSerial), "listen on %s for the serial console", fileSerial)
	add("agent listen", listen(fdAgent, fileAgent), "listen on %s for the guest agent's channel", fileAgent)
	for _, c := range p.companions {
		add(c.name+" connect", func(l *life, _ context.Context) error { return l.connect(c) },
			"make a socket between QEMU and %s", filepath.Base(c.program))
	}
	add("log open", (*life).openLog, "make the pipe %s for QEMU's standard error, which is logged in %s", fileStderr, fileQEMULog)
	add("namespace create", (*life).createNamespace, "make a network namespace for the guest, without IPv6 of its own")
	for _, c := range p.Children {
		if c.VLAN != 0 {
			add(c.Name+" vlan", func(l *life, ctx context.Context) error { return l.acquireVLAN(ctx, c) },
				"make VLAN device %s on %s, if it is not there", c.Lower(), c.Parent)
		}
		add(c.Name+" create", func(l *life, ctx context.Context) error { return l.createChild(ctx, c) },
			"%s", describeChild(c))
		add(c.Name+" open", func(l *life, _ context.Context) error { return l.openTaps(c) },
			"open %s of %s's tap%s", plural(c.Queues, "queue"), c.Name, describeVhost(c))
	}
	if kernel := p.Guest.Boot.Kernel; kernel != "" {
		add("kernel open", (*life).openKernel, "open %s, or copy it into sealed memory where QEMU could not read it or could change it", kernel)
	}
	if initrd := p.Guest.Boot.Initrd; initrd != "" { // which is being copied since the start began
		add("initrd load", (*life).loadInitrd, "copy %s into sealed memory", initrd)
	}
	if p.Limits != (configs.Limits{}) {
		add("cgroup create", (*life).createCgroup, "make a cgroup for QEMU, with %s at most", limitWords(p.Limits))
	}
	add("qemu start", (*life).startQEMU, "start %s in it, %s, CPUs halted", p.QEMU, describeWalls(p))
	add("qemu record", (*life).recordQEMU, "write its pid into the state file")
	for _, c := range p.companions {
		add(c.name+" start", func(l *life, _ context.Context) error { return l.startCompanion(c) }, "%s", c.text)
	}
	// What needs no answer of QEMU's comes while it loads, which takes longer than all
	// the rest of a start.
	add("console connect", (*life).connectConsole, "connect to the serial console, keep its log")
	for _, c := range p.Children {
		if c.Pin != configs.PinNone {
			add(c.Name+" pin", func(l *life, _ context.Context) error { return l.ns.Pin(c) },
				"drop what the guest sends on %s with %s", c.Name, describePin(c))
		}
		if c.Bandwidth != (configs.Bandwidth{}) {
			add(c.Name+" shape", func(l *life, _ context.Context) error { return l.ns.Shape(c, c.Bandwidth) },
				"limit %s to %s", c.Name, describeBandwidth(c.Bandwidth))
		}
		add(c.Name+" filter", func(l *life, _ context.Context) error { return l.ns.SetFilter(c, firstFilter(c)) },
			"let %s to %s", describeMulticast(c), c.Name)
	}
	add("nics watch", (*life).watchNICs, "listen to the host's links, and to what the guest says of its addresses")
	for _, parent := range accessParents(p.Children) {
		add(parent+" access", func(l *life, ctx context.Context) error { return l.nics.reach(ctx, parent) },
			"make the host's own way to the guests on %s", parent)
	}
	add("monitor connect", (*life).connectMonitor, "connect to the monitor, once QEMU has loaded")
	if len(p.Guest.CPUAffinity) > 0 {
		add("cpus pin", (*life).pinCPUs, "keep the guest's CPUs to those of this host: %s", describeCPUs(p.Guest.CPUAffinity))
	}
	if p.Guest.Display == configs.DisplayVNC {
		add("display listen", (*life).serveDisplay, "listen on %s for those who look at the screen", fileVNC)
	}
	add("control listen", (*life).serveControl, "listen on %s, for vmrun's other commands and any QMP tool%s", fileControl, describeGroup(p))
	if p.memory != nil {
		add("memory load", (*life).loadMemory, "have QEMU take over the memory of %s, from %s", p.memory.At.Format(time.DateTime), filepath.Join(facts.State, fileMemory))
	}
	for _, c := range p.Children {
		add(c.Name+" up", func(l *life, ctx context.Context) error { return l.up(ctx, c) }, "set %s up", c.Name)
	}
	add("commit", (*life).commit, "mark the guest as started: from here on it outlives its supervisor")
	if p.memory != nil {
		add("memory take", (*life).takeMemory, "remove that memory: from here on it is older than the guest")
	}
	if !paused {
		add("run", (*life).resume, "let the guest's CPUs run")
	}
	return list
}

// addInputs adds the steps for the files that the guest is made of.
func addInputs(p *Plan, facts Facts, add func(string, func(*life, context.Context) error, string, ...any)) {
	g := p.Guest
	for i, d := range g.Disks {
		if d.Path == "" {
			continue
		}
		if facts.Missing[d.Path] {
			add(fmt.Sprintf("disk%d create", i), func(l *life, ctx context.Context) error { return l.createDisk(ctx, d) },
				"create %s", describeNewDisk(d))
		}
		if p.grows(d, p.chains[i]) {
			add(fmt.Sprintf("disk%d grow", i), func(l *life, ctx context.Context) error { return l.growDisk(ctx, d) },
				"grow %s from %s to %s", d.Path, configs.Size(p.chains[i][0].Size), d.Size)
		}
		add(fmt.Sprintf("disk%d open", i), func(l *life, _ context.Context) error { return l.openDisk(i, d) },
			"open %s", describeChain(p.chains[i]))
	}
}

func describeWalls(p *Plan) string {
	c := p.Guest.Confine
	words := []string{fmt.Sprintf("as uid %d without capabilities", p.UID)}
	if !c.User {
		words[0] = "as root"
	}
	for _, wall := range []struct {
		stands bool
		word   string
	}{
		{c.Root, "a root of its own"}, {c.Namespaces, "namespaces"}, {c.Landlock, "landlock"},
		{c.Seccomp, "seccomp"}, {c.RLimits, "limits"},
	} {
		if wall.stands {
			words = append(words, wall.word)
		}
	}
	return strings.Join(words, ", ")
}

func describeGroup(p *Plan) string {
	if p.Group == 0 {
		return ""
	}
	return ", and let the group " + p.Guest.Group + " use the guest"
}

func describeNewDisk(d configs.Disk) string {
	words := []string{d.Path, string(d.Format)}
	if d.Size != 0 {
		words = append(words, d.Size.String())
	}
	if d.Base != "" {
		words = append(words, "an overlay of "+d.Base)
	}
	return strings.Join(words, ", ")
}

func describeChain(chain []layer) string {
	words := chain[0].Path
	for _, l := range chain[1:] {
		words += ", on " + l.Path
	}
	return words
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// loadInitrd waits until the copy is there, which QEMU goes on using: a guest that
// restarts by itself finds the initrd that it was started with.
func (l *life) loadInitrd(ctx context.Context) (err error) {
	l.files[fdInitrd], err = l.initrd.take(ctx)
	return err
}

// listen makes the socket on which QEMU will serve. It listens before QEMU
// exists, so that connecting needs no polling and an early death is an EOF.
func listen(name, file string) func(*life, context.Context) error {
	return func(l *life, _ context.Context) error {
		listener, err := listenUnix(l.dir.path(file))
		if err != nil {
			return err
		}
		defer listener.Close()
		l.undo.push(file, func() error { return l.removeOwn(file) })
		l.files[name], err = listener.File()
		return err
	}
}

// listenUnix listens on a socket that only root can reach, in place of one that
// a dead predecessor left. Closing the listener leaves the file.
func listenUnix(path string) (*net.UnixListener, error) {
	if err := removeFile(path); err != nil {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if errors.Is(err, unix.EINVAL) {
		return nil, fmt.Errorf("%s: longer than the 107 bytes that a socket's path can have: choose a shorter --run-dir", path)
	}
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func (l *life) createNamespace(context.Context) error {
	ns, err := netsetup.NewNamespace()
	if err != nil {
		return err
	}
	l.ns = ns
	l.undo.push("namespace", ns.Close)
	return ns.Quiet()
}

func (l *life) acquireVLAN(ctx context.Context, c netsetup.Child) error {
	if _, err := netsetup.AcquireVLAN(ctx, owner(c), c.Parent, c.VLAN); err != nil {
		return err
	}
	l.undo.push(c.Name+" vlan", func() error { return releaseVLAN(c) })
	return nil
}

func (l *life) createChild(ctx context.Context, c netsetup.Child) error {
	err := retryAddress(ctx, func() error { return l.ns.Create(c) })
	if err != nil {
		return explainCreate(c, err)
	}
	l.undo.push(c.Name, func() error { return l.ns.Delete(c) })
	return nil
}

// retryAddress repeats fn while the kernel still removes an earlier owner of the MAC.
func retryAddress(ctx context.Context, fn func() error) error {
	deadline := time.Now().Add(addressTimeout)
	for {
		err := fn()
		if !errors.Is(err, unix.EADDRINUSE) || time.Now().After(deadline) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// explainCreate adds what Check could not know, because it cannot see into
// other namespaces.
func explainCreate(c netsetup.Child, err error) error {
	switch {
	case errors.Is(err, unix.EADDRINUSE) && c.Kind == configs.KindIPvtap:
		return err // says which of its addresses
	case errors.Is(err, unix.EADDRINUSE):
		return fmt.Errorf("%w: MAC %s is in use on %s by a link in another namespace", err, c.MAC, c.Parent)
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%w: %s is taken by somebody whose link is of another kind: ip -d link show %s", err, c.Parent, c.Parent)
	case errors.Is(err, unix.EINVAL) && c.Mode == configs.ModePassthru:
		return fmt.Errorf("%w: %s has other children, in another namespace, and passthru takes it alone", err, c.Parent)
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("%w: %s may belong to a passthru child in another namespace", err, c.Parent)
	case errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("%w: this kernel has no macvtap: modprobe macvtap", err)
	}
	return err
}

func (l *life) openTaps(c netsetup.Child) error {
	files, err := openNIC(l.ns, c)
	maps.Copy(l.files, files)
	return err
}

// openNIC opens what QEMU needs of a child, by the names of its descriptors.
func openNIC(ns *netsetup.Namespace, c netsetup.Child) (map[string]*os.File, error) {
	files := map[string]*os.File{}
	taps, err := ns.OpenTaps(c)
	if err != nil {
		return nil, err
	}
	for q, tap := range taps {
		files[tapName(c, q)] = tap
	}
	if c.Vhost != configs.VhostOn {
		return files, nil
	}
	vhosts, err := netsetup.OpenVhost(c.Queues)
	for q, vhost := range vhosts {
		files[vhostName(c, q)] = vhost
	}
	return files, err
}

func (l *life) startQEMU(context.Context) error {
	files := make([]*os.File, len(l.plan.Files))
	for i, name := range l.plan.Files {
		f, ok := l.files[name]
		if !ok {
			return fmt.Errorf("descriptor %d (%s) was not opened", i, name)
		}
		files[i] = f
	}
	if !l.plan.Guest.Confine.User && l.lease != nil {
		files = append(files, l.lease) // no uid tells its slot
	}
	walls := newWalls(l.plan, l.dir.real())
	walls.reopened = l.reopened
	child, err := walls.start(l.ns, l.plan.QEMU, l.plan.Argv, files)
	if err != nil {
		return err
	}
	if l.qemu, err = watchChild(child); err != nil {
		return err
	}
	l.undoUnlessCommitted("qemu", l.qemu.kill)
	if err := l.enterCgroup(l.qemu); err != nil {
		return err
	}
	l.closeFiles()
	return l.endLease()
}

func (l *life) recordQEMU(context.Context) error {
	return l.update(func(r *record) { r.QEMU = l.qemu.id })
}

func (l *life) connectMonitor(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, greetTimeout)
	defer cancel()
	mon, err := qmp.Dial(ctx, l.dir.path(fileMonitor))
	if err != nil {
		return l.explainSilence(err)
	}
	l.setMonitor(mon)
	l.undo.push("monitor", l.closeMonitor)
	if len(l.plan.Guest.QEMUArgs) > 0 {
		id, err := mon.QueryUUID(ctx)
		if err != nil {
			return err
		}
		if id != l.plan.UUID.String() {
			return fmt.Errorf("QEMU says its uuid is %s, and is to have %s, by which it is known: set uuid in the spec, not in qemu_args", id, l.plan.UUID)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rec.QEMUVersion = mon.Version() // which the commit writes down
	return nil
}

// explainSilence turns a monitor that was closed, because QEMU refused its
// command line for example, into QEMU's own words.
func (l *life) explainSilence(err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("QEMU did not answer within %v: %w", greetTimeout, err)
	}
	if !errors.Is(err, qmp.ErrClosed) && !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, unix.ECONNRESET) {
		return err
	}
	select {
	case <-l.qemu.done:
		return l.earlyEnd("before it greeted")
	case <-time.After(time.Second):
		return err
	}
}

// earlyEnd says how QEMU ended, in its own words.
func (l *life) earlyEnd(when string) error {
	o := outcome(situation{}, l.ending(), l.lastWords())
	words := l.plan.withPaths(strings.Join(o.Log, "\n\t"))
	return fmt.Errorf("%s %s: %s", o, when, strings.Join(append([]string{words}, l.companionWords()...), "\n\t"))
}

// withPaths puts the paths of images into QEMU's words, which knows them by
// number, and says what a lock means.
func (p *Plan) withPaths(words string) string {
	for i := len(p.images); i > 0; i-- {
		words = strings.ReplaceAll(words, fmt.Sprintf("/dev/fdset/%d", i), p.images[i-1])
	}
	if strings.Contains(words, "cannot set up guest memory") {
		words += fmt.Sprintf("\n\tthe host does not give QEMU %s for the guest: lower memory in the spec, or see free -h and ulimit -v", p.Guest.Memory)
	}
	if strings.Contains(words, "\" lock") {
		words += "\n\t" + oneWriter + ": vmrun ps, or fuser -v with its path, may tell whose it is"
	}
	refused := func(why string) bool { return strings.Contains(words, why) }
	if len(p.Guest.QEMUArgs) > 0 && slices.ContainsFunc([]string{"No such file", "Permission denied", "Operation not permitted"}, refused) {
		words += "\n\tqemu_args stay inside QEMU's walls: it sees none of the host's files but those that it comes with, has no network but its NICs, and may start no process"
	}
	return words
}

func (l *life) connectConsole(ctx context.Context) error {
	console, err := newConsole(ctx, l.dir, l.guest().Console.LogSize, l.log, l.heard)
	if err != nil {
		return err
	}
	l.mu.Lock()
	l.console = console
	l.mu.Unlock()
	l.undo.push("console", func() error { return errors.Join(console.Close(), l.removeOwn(fileConsole)) })
	return nil
}

func (l *life) up(ctx context.Context, c netsetup.Child) error {
	return explainCreate(c, retryAddress(ctx, func() error { return l.ns.Up(c) }))
}

// commit marks the start as done. What fails after it is no reason to end the guest.
func (l *life) commit(context.Context) error {
	select {
	case <-l.qemu.done: // which no step since it greeted has to have noticed
		return l.earlyEnd("before it ran")
	default:
	}
	if err := l.update(func(r *record) { r.Committed, r.Started = true, time.Now() }); err != nil {
		return err
	}
	l.committed = true
	return nil
}

func (l *life) resume(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	if err := l.monitor().Cont(ctx); err != nil {
		return err
	}
	l.setSituation(situation{Ran: true})
	if l.snapshot().Restored {
		return l.announceSelf(ctx)
	}
	return nil
}
