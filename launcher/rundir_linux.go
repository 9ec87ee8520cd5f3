package launcher

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"vmrun/configs"
	"vmrun/netsetup"
	"vmrun/qmp"
)

// The files of a guest's run directory.
const (
	fileLock          = "lock"
	fileState         = "state"
	fileControl       = "control.sock"
	fileConsole       = "console.sock"
	fileMonitor       = "qemu.sock"
	fileSerial        = "serial.sock"
	fileAgent         = "agent.sock"
	fileVNC           = "vnc.sock"
	fileStderr        = "stderr"     // a FIFO
	fileCompanions    = "companions" // a FIFO too
	fileConsoleLog    = "console.log"
	fileQEMULog       = "qemu.log"
	fileCompanionLog  = "companions.log"
	fileSupervisorLog = "supervisor.log"
)

// sockets are those that end with the guest, and so does the pipe.
var sockets = []string{fileControl, fileConsole, fileMonitor, fileSerial, fileAgent, fileVNC, fileStderr, fileCompanions}

// maxRecord bounds the state file that is read: 64 NICs with 64 addresses each
// take little more than 1 MiB.
const maxRecord = 4 << 20

// maxElements bounds what is in it: an empty element is short in the file and
// long in memory.
const maxElements = 100_000

// runDir is the directory of one guest.
type runDir string

func (d runDir) path(file string) string { return filepath.Join(string(d), file) }

// record is what outlives a supervisor: enough to adopt its guest. It is
// believed about nothing that the kernel or QEMU can be asked.
type record struct {
	Version     int                           `json:"version"`
	BootID      string                        `json:"boot_id"`
	Guest       *configs.Guest                `json:"guest"`
	UUID        uuid.UUID                     `json:"uuid"`
	Accel       configs.Accel                 `json:"accel"`
	Children    []netsetup.Child              `json:"children"`
	Slot        int                           `json:"slot"`
	Ports       int                           `json:"ports"`              // as in the plan
	Lost        []string                      `json:"lost,omitempty"`     // children that QEMU's cards have no part in any more
	Loose       []netsetup.Child              `json:"loose,omitempty"`    // being added or removed: not to be kept
	Plugging    *netsetup.Child               `json:"plugging,omitempty"` // the one of Loose, in version 2
	Supervisor  int                           `json:"supervisor"`         // its pid when the record was written
	QEMU        processID                     `json:"qemu"`
	QEMUVersion qmp.Version                   `json:"qemu_version"`
	Companions  []companionRecord             `json:"companions,omitempty"`
	Committed   bool                          `json:"committed"` // the guest was about to run
	Halted      bool                          `json:"halted"`    // the guest was to be left with its CPUs halted
	Forced      bool                          `json:"forced,omitempty"`
	Ready       bool                          `json:"ready,omitempty"`    // it has come as far as ready.when in its spec says
	Restored    bool                          `json:"restored,omitempty"` // it goes on from a memory on disk
	Restarts    restarts                      `json:"restarts,omitzero"`
	Situation   situation                     `json:"situation"`
	Addresses   map[string][]netsetup.Address `json:"addresses,omitempty"` // learned, by child
	Frozen      bool                          `json:"frozen,omitempty"`    // its file systems are, or may be, for a moment
	Media       map[string]Medium             `json:"media,omitempty"`     // put into drives, by QEMU's block node
	Inserted    int                           `json:"inserted,omitempty"`  // how many have been
	Started     time.Time                     `json:"started"`
	Clock       clock                         `json:"clock,omitzero"`      // when this was written
	Cgroup      *cgroup                       `json:"cgroup,omitempty"`    // of a QEMU with limits
	Unlimited   string                        `json:"unlimited,omitempty"` // why limits of the spec do not hold
	Kills       *kills                        `json:"kills,omitempty"`     // before QEMU was started
	Ended       *Outcome                      `json:"ended,omitempty"`

	dir runDir // that it was read from; "" for one that was not
}

// The versions of the record: what is written, and the oldest that is read. A
// guest outlives the vmrun that started it, and so an upgrade.
const (
	recordVersion = 3
	oldestVersion = 2
)

// errNoRecord says that there is no usable state file.
var errNoRecord = errors.New("no record of the guest")

func (d runDir) readRecord() (*record, error) {
	data, err := readBounded(d.path(fileState), maxRecord)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoRecord, err)
	}
	r, err := decodeRecord(data)
	if err != nil {
		return nil, err
	}
	if name := filepath.Base(string(d)); r.Guest.Name != name {
		return nil, fmt.Errorf("%w: the state file of %s is that of guest %s", errNoRecord, name, r.Guest.Name)
	}
	r.dir = d
	return r, nil
}

// readBounded reads a regular file; anything else could keep its reader waiting.
func readBounded(path string, limit int64) ([]byte, error) {
	var data bytes.Buffer
	err := readBoundedInto(&data, path, limit)
	return data.Bytes(), err
}

// readBoundedInto is readBounded for one who reads many files.
func readBoundedInto(data *bytes.Buffer, path string, limit int64) error {
	data.Reset()
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return errors.Join(fmt.Errorf("%s is not a regular file", path), err)
	}
	data.Grow(int(min(info.Size(), limit)) + bytes.MinRead)
	n, err := data.ReadFrom(io.LimitReader(f, limit+1))
	if err == nil && n > limit {
		err = fmt.Errorf("%s is larger than %d bytes", path, limit)
	}
	return err
}

func decodeRecord(data []byte) (*record, error) {
	refuse := func(format string, args ...any) (*record, error) {
		return nil, fmt.Errorf("%w: the state file %w", errNoRecord, fmt.Errorf(format, args...))
	}
	if len(data) == 0 {
		return refuse("is empty")
	}
	var first struct { // before what other versions may mean otherwise
		Version int `json:"version"`
	}
	if err := json.Unmarshal(data, &first); err != nil {
		return refuse("is spoilt: %w", err)
	}
	if first.Version < oldestVersion || first.Version > recordVersion {
		return refuse("has version %d, and this vmrun reads %d to %d", first.Version, oldestVersion, recordVersion)
	}
	if n := bytes.Count(data, []byte{','}); n > maxElements {
		return refuse("cannot be vmrun's: it has %d elements", n)
	}
	var r record
	if err := json.Unmarshal(data, &r); err != nil {
		return refuse("is spoilt: %w", err)
	}
	if err := r.check(); err != nil {
		return refuse("cannot be vmrun's: %w", err)
	}
	r.upgrade()
	if r.Ended == nil && !r.Clock.Shown.IsZero() && r.BootID == bootID() {
		r = r.withTimes(r.Clock.since)
	}
	return &r, nil
}

// upgrade fills in what an older version does not have.
func (r *record) upgrade() {
	if r.Version < 3 {
		r.Guest.Restart.Policy = configs.RestartNo
		r.Guest.Confine = configs.Confine{User: true, Seccomp: true} // as it was started
	}
	if r.Guest.Ready.When == "" { // it was started by a vmrun that did not know of it
		r.Guest.Ready.When = configs.ReadyStarted
	}
	if r.Guest.Display == "" { // likewise
		r.Guest.Display = configs.DisplayNone
	}
	for i := range r.Guest.Disks {
		if d := &r.Guest.Disks[i]; d.IO == "" { // likewise
			d.IO = configs.IOThreads
		}
	}
	if r.Plugging != nil {
		r.Loose, r.Plugging = append(r.Loose, *r.Plugging), nil
	}
	r.Version = recordVersion
}

// check says what is in a record that no vmrun has written: paths and names, and
// numbers of other guests.
func (r *record) check() error {
	switch {
	case r.Guest == nil:
		return errors.New("it names no guest")
	case r.Slot < 0 || r.Slot >= maxSlots:
		return fmt.Errorf("there is no slot %d", r.Slot)
	case r.Ports < 0 || r.Ports > maxNICs:
		return fmt.Errorf("no guest has %d places for NICs", r.Ports)
	case r.QEMU.PID < 0:
		return fmt.Errorf("QEMU's pid is %d", r.QEMU.PID)
	case len(r.Companions) > maxCompanions:
		return fmt.Errorf("no guest has %d companions", len(r.Companions))
	case len(r.Children) > maxNICs:
		return fmt.Errorf("no guest has %d NICs", len(r.Children))
	}
	if err := configs.CheckName(r.Guest.Name); err != nil {
		return fmt.Errorf("the guest's name: %w", err)
	}
	if err := r.Cgroup.check(); err != nil {
		return err
	}
	all := slices.Concat(r.Children, r.Loose)
	if r.Plugging != nil {
		all = append(all, *r.Plugging)
	}
	seen := map[string]bool{}
	for _, c := range all {
		if err := r.checkChild(c); err != nil {
			return fmt.Errorf("NIC %q: %w", c.Name, err)
		}
		if seen[c.Name] {
			return fmt.Errorf("NIC %q: there are two", c.Name)
		}
		seen[c.Name] = true
	}
	return nil
}

func (r *record) checkChild(c netsetup.Child) error {
	n := number(c)
	switch {
	case n < 0 || n >= maxNICs || c.Name != fmt.Sprintf("net%d", n):
		return errors.New("a NIC has no such name")
	case c.Index != firstIndex+r.Slot*maxNICs+n:
		return fmt.Errorf("index %d is not of slot %d", c.Index, r.Slot)
	case c.VLAN < 0 || c.VLAN > 4094:
		return fmt.Errorf("there is no VLAN %d", c.VLAN)
	case c.Queues < 1 || c.Queues > netsetup.MaxQueues:
		return fmt.Errorf("it has %d queues", c.Queues)
	}
	return errors.Join(configs.CheckInterface(c.Parent), configs.CheckMAC(c.MAC))
}

// writeRecord replaces the state file in one go.
func (d runDir) writeRecord(r *record) error {
	r.Clock = readClock()
	now := r.withTimes(present)
	data, err := json.MarshalIndent(&now, "", " ")
	if err != nil {
		return fmt.Errorf("state file: %w", err)
	}
	if err := d.replace(fileState, data); err != nil {
		return fmt.Errorf("state file: %w", err)
	}
	return nil
}

// sweep removes what was left by a writer of the record that was killed. Whoever
// calls it has the lock. What cannot be removed is in nobody's way.
func (d runDir) sweep() {
	entries, _ := os.ReadDir(string(d))
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "."+fileState) {
			_ = os.Remove(d.path(e.Name()))
		}
	}
}

// BusyError says that a guest has a supervisor already.
type BusyError struct {
	Name string
	PID  int // the supervisor's, 0 where it could not be read
}

func (e *BusyError) Error() string {
	if e.PID == 0 {
		return fmt.Sprintf("%s has a supervisor already", e.Name)
	}
	return fmt.Sprintf("%s has a supervisor already (pid %d)", e.Name, e.PID)
}

// lock takes the guest's name for a supervisor. The lock belongs to the open file
// (fcntl(2), open file description locks): it ends with its last descriptor,
// whatever happens to the process.
func (d runDir) lock() (*os.File, error) {
	f, err := d.takeLock()
	if err == nil {
		writeHolder(f, strconv.Itoa(os.Getpid()))
	}
	return f, err
}

// lockBriefly takes the name for what is done in a moment. No process is noted,
// so whoever wants the name waits.
func (d runDir) lockBriefly() (*os.File, error) {
	f, err := d.takeLock()
	if err == nil {
		writeHolder(f, "")
	}
	return f, err
}

// takeLock waits for a lock that is no supervisor's.
func (d runDir) takeLock() (*os.File, error) {
	for deadline := time.Now().Add(commandTimeout); ; time.Sleep(2 * time.Millisecond) {
		f, err := d.tryTakeLock()
		var busy *BusyError
		if !errors.As(err, &busy) || busy.PID != 0 || time.Now().After(deadline) {
			return f, err
		}
	}
}

func (d runDir) tryTakeLock() (*os.File, error) {
	for range 100 { // a cleanup may remove the directory in between
		if err := d.make(); err != nil {
			return nil, err
		}
		f, err := os.OpenFile(d.path(fileLock), os.O_RDWR|os.O_CREATE, 0o600)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("run directory: %w", err)
		}
		if err := tryLock(f); err != nil {
			pid := d.holder(f)
			f.Close()
			return nil, errors.Join(&BusyError{Name: filepath.Base(string(d)), PID: pid}, unexpectedLockError(err))
		}
		if sameFile(f, d.path(fileLock)) {
			return f, nil
		}
		f.Close()
	}
	return nil, fmt.Errorf("run directory: %s does not stay", d)
}

// make makes the directory, open to root alone.
func (d runDir) make() error {
	base := filepath.Dir(string(d))
	err := makeAll(base)
	if err == nil {
		err = CheckRunDir(base)
	}
	if err == nil {
		err = os.Mkdir(string(d), 0o700)
	}
	if err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("run directory: %w", err)
	}
	return nil
}

// supervisor reports whether the guest's name is locked, and by whom.
func (d runDir) supervisor() (pid int, alive bool) {
	f, err := os.Open(d.path(fileLock))
	if err != nil {
		return 0, false
	}
	defer f.Close()
	lk := unix.Flock_t{Type: unix.F_RDLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lk); err != nil || lk.Type == unix.F_UNLCK {
		return 0, false
	}
	return d.holder(f), true
}

// lastingSupervisor is supervisor, once nobody has the lock just for a moment.
func (d runDir) lastingSupervisor() (pid int, alive bool) {
	for deadline := time.Now().Add(commandTimeout); ; time.Sleep(2 * time.Millisecond) {
		if pid, alive = d.supervisor(); !alive || pid != 0 || time.Now().After(deadline) {
			return pid, alive
		}
	}
}

func tryLock(f *os.File) error {
	return unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
}

// unexpectedLockError is err, unless it only says that somebody has the lock.
func unexpectedLockError(err error) error {
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return nil
	}
	return err
}

func sameFile(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Stat(path)
	return err == nil && os.SameFile(a, b)
}

// lockIsOpenIn reports whether a process has the lock's file open, or may have:
// the kernel does not tell whose an open file description lock is.
func (d runDir) lockIsOpenIn(pid int) bool {
	lock, err := os.Stat(d.path(fileLock))
	if err != nil {
		return false
	}
	fds := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(fds)
	return errors.Is(err, os.ErrPermission) || slices.ContainsFunc(entries, func(e os.DirEntry) bool {
		info, err := os.Stat(filepath.Join(fds, e.Name()))
		return err == nil && os.SameFile(info, lock)
	})
}

// writeHolder notes who has the lock, for people: a full file system is no
// reason to do without the lock.
func writeHolder(f *os.File, who string) {
	_, _ = f.WriteAt(fmt.Appendf(nil, "%-10s\n", who), 0) // over the last one's, which takes no space
}

// holder reads who has the lock, 0 where nobody is noted, or one who has it no
// more. Between taking the lock and the note there is an instant, which is waited
// for.
func (d runDir) holder(f *os.File) int {
	var buf [16]byte
	for range 10 {
		n, _ := f.ReadAt(buf[:], 0)
		if pid, err := strconv.Atoi(strings.TrimSpace(string(buf[:n]))); err == nil && d.lockIsOpenIn(pid) {
			return pid
		}
		time.Sleep(2 * time.Millisecond)
	}
	return 0
}
