package launcher

import (
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"

	"vmrun/configs"
)

// companion is a process that serves one of a guest's devices: its TPM, or a
// directory that it shares. It is started between walls like QEMU's, in a network
// namespace of its own, so that it keeps nothing of the guest's alive. It and QEMU
// have the two ends of a socket, and it ends by itself when QEMU does, whoever
// else is there.
//
// Its standard error is a pipe, as QEMU's is, by which it is known, and what comes
// out of it is kept in companions.log.
type companion struct {
	name    string // of the step, the descriptor and the record: "tpm", "share0"
	program string // absolute
	args    []string
	walls   walls // without the place to build the root on, and what the program loads
	text    string
}

// The descriptors of a companion.
const companionEnd = 3

// ownDir is the one directory that a companion works in, and where it sees it.
type ownDir struct {
	path     string
	at       string
	readonly bool
}

// privileges of a virtiofsd, which does what the guest's users do as the host's of
// the same number. It keeps the first five; the others it drops when it has begun.
var (
	shareChown    = privilege{unix.CAP_CHOWN, "CAP_CHOWN", "give a file to another user"}
	shareOverride = privilege{unix.CAP_DAC_OVERRIDE, "CAP_DAC_OVERRIDE", "be the guest's root"}
	shareOwner    = privilege{unix.CAP_FOWNER, "CAP_FOWNER", "change the mode of another user's file"}
	shareUser     = privilege{unix.CAP_SETUID, "CAP_SETUID", "create files as the guest's user"}
	shareGroup    = privilege{unix.CAP_SETGID, "CAP_SETGID", "create files as the guest's group"}
	shareRoot     = privilege{unix.CAP_SYS_CHROOT, "CAP_SYS_CHROOT", "make the directory its root"}
	shareDrop     = privilege{unix.CAP_SETPCAP, "CAP_SETPCAP", "give up the others for good"}
)

// shareKept are those that a virtiofsd has for good.
var shareKept = []privilege{shareChown, shareOverride, shareOwner, shareUser, shareGroup}

// companions are those that a guest needs, in the order in which they start.
func companions(p *Plan, facts Facts) []companion {
	var list []companion
	if p.Guest.TPM {
		list = append(list, newTPM(p, facts))
	}
	for i, s := range p.Guest.Shares {
		list = append(list, newShare(i, s, facts))
	}
	return list
}

// newTPM is an swtpm (swtpm(8)) with the guest's uid. With --terminate it ends
// when QEMU has closed the socket that it was given for commands to the TPM.
func newTPM(p *Plan, facts Facts) companion {
	dir := filepath.Join(facts.State, tpmDir)
	return companion{
		name:    nameTPM,
		program: facts.Swtpm,
		args: []string{"socket", "--tpm2", "--terminate", "--ctrl", fmt.Sprintf("type=unixio,fd=%d", companionEnd),
			"--tpmstate", "dir=/tpm"},
		walls: walls{
			uid: p.UID, own: ownDir{path: dir, at: "/tpm"}, files: maxFiles, threads: companionThreads,
			devices: []string{"/dev/null", "/dev/urandom"},
		},
		text: fmt.Sprintf("start %s as uid %d, with what it keeps in %s", facts.Swtpm, p.UID, dir),
	}
}

const (
	nameTPM          = "tpm"
	tpmDir           = "tpm" // of the guest's state directory
	maxCompanions    = 32
	companionThreads = 256
	shareFiles       = 1 << 20 // one for each file that the guest knows of
)

// shareName is the name of a share's companion.
func shareName(i int) string { return fmt.Sprintf("share%d", i) }

// newShare is a virtiofsd for one share. It is root with few capabilities, for a
// share that is only read with one.
func newShare(i int, s configs.Share, facts Facts) companion {
	caps := []privilege{shareOverride, shareRoot, shareDrop}
	dropped := "-fsetid:-mknod:-setfcap"
	if s.Readonly {
		dropped += ":-chown:-fowner:-setuid:-setgid"
	} else {
		caps = append(caps, shareChown, shareOwner, shareUser, shareGroup)
	}
	args := []string{"-f", fmt.Sprintf("--fd=%d", companionEnd), "--rlimit-nofile=0",
		"-o", "source=/share", "-o", "sandbox=chroot", "-o", "cache=auto", "-o", "log_level=warn", "-o", "modcaps=" + dropped}
	if facts.VirtiofsdRust {
		args = []string{fmt.Sprintf("--fd=%d", companionEnd), "--rlimit-nofile=0",
			"--shared-dir=/share", "--sandbox=chroot", "--cache=auto", "--log-level=warn", "--modcaps=" + dropped}
	}
	access := "as root with few capabilities"
	if s.Readonly {
		access = "read-only"
	}
	return companion{
		name: shareName(i), program: facts.Virtiofsd, args: args,
		walls: walls{
			calls: serverCalls, caps: caps, own: ownDir{path: s.Path, at: "/share", readonly: s.Readonly}, files: shareFiles, threads: companionThreads,
			devices: []string{"/dev/null"},
		},
		text: fmt.Sprintf("start %s for %s, %s", facts.Virtiofsd, s.Path, access),
	}
}

// companionWalls are those that stand around every companion: [confine] is QEMU's.
var companionWalls = configs.Confine{User: true, Seccomp: true, Root: true, Namespaces: true, Landlock: true, RLimits: true}

// suspendable says why a guest cannot be suspended, or be given back a state from
// before, or returns nil.
func suspendable(g *configs.Guest) error {
	if len(g.Shares) > 0 {
		return errors.New("it has a [[share]], and virtiofsd cannot hand over the files that the guest has open there: unmount it in the guest, and start the guest without its [[share]]")
	}
	return nil
}

// CompanionStatus is a process that serves one of a guest's devices.
type CompanionStatus struct {
	Name string `json:"name"` // "tpm", "share0"
	PID  int    `json:"pid"`  // 0: it has ended, though the guest has not, and its device is dead
	Text string `json:"text"` // what it serves, for people
}

// companionRecord is what outlives a supervisor of a companion.
type companionRecord struct {
	Name    string    `json:"name"`
	Process processID `json:"process"`
	Ended   bool      `json:"ended,omitempty"` // before the guest
}

// companionStatuses are those of a guest that is there.
func (r record) companionStatuses() []CompanionStatus {
	var list []CompanionStatus
	for _, h := range r.Companions {
		s := CompanionStatus{Name: h.Name, PID: h.Process.PID, Text: "swtpm, the guest's TPM"}
		for i, share := range r.Guest.Shares {
			if shareName(i) == h.Name {
				s.Text = fmt.Sprintf("virtiofsd, %s as %s", share.Path, share.Tag)
			}
		}
		if h.Ended {
			s.PID = 0
		}
		list = append(list, s)
	}
	return list
}
