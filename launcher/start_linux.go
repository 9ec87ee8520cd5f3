package launcher

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"vmrun/configs"
)

// startTimeout bounds a start as a whole; it is above the sum of what its steps
// may take on a host that works.
const startTimeout = 60 * time.Second

// Kind sorts errors by what the user can do about them.
type Kind string

// The kinds; cmd makes exit statuses of them.
const (
	KindFailed  Kind = "failed"
	KindSpec    Kind = "spec"    // wrong spec or usage; nothing was created
	KindState   Kind = "state"   // no such guest, or not in the state needed
	KindTimeout Kind = "timeout" // somebody did not answer in time
)

// KindOf sorts err.
func KindOf(err error) Kind {
	var spec *configs.Error
	var specs configs.Errors
	var busy *BusyError
	var told *StartError
	switch {
	case errors.As(err, &told):
		return told.Kind
	case errors.As(err, &spec), errors.As(err, &specs):
		return KindSpec
	case errors.As(err, &busy), errors.Is(err, ErrNotFound), errors.Is(err, ErrState):
		return KindState
	case errors.Is(err, ErrUnresponsive), errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return KindTimeout
	}
	return KindFailed
}

// StartError is what a supervisor in the background says of a start that failed.
type StartError struct {
	Kind Kind   `json:"kind"`
	Msg  string `json:"error"`
}

func (e *StartError) Error() string { return e.Msg }

// message is the one line that a supervisor in the background writes to whoever
// started it.
type message struct {
	*StartError
	*Report
}

// Supervisor is the command that runs a guest's supervisor in the background.
// The descriptor that it is to report on is given as the last argument of a
// --report-fd option.
type Supervisor struct {
	Path string
	Args []string // the options, the verb included; Start adds --guest and the file's path
	Env  []string // nil: what a supervisor needs of the caller's
}

// Start puts a supervisor for the guest into the background and waits until it
// says that the guest is there. Cancelling ctx takes the start back. The error
// is a *BusyError, a *StartError, or says that the supervisor died.
func Start(ctx context.Context, g *configs.Guest, base string, s Supervisor) (Report, error) {
	dir := guestDir(base, g.Name)
	if pid, held := dir.supervisor(); held && pid != 0 {
		return Report{}, &BusyError{Name: g.Name, PID: pid}
	}
	if err := dir.make(); err != nil {
		return Report{}, err
	}
	log, err := openRotating(dir.path(fileSupervisorLog), supervisorLogSize)
	if err != nil {
		os.Remove(string(dir)) // if it is empty
		return Report{}, err
	}
	defer log.Close()
	if _, err := log.room(supervisorLogSize / 16); err != nil { // for one that ends before it logs
		return Report{}, err
	}
	before, err := log.file.Stat()
	if err != nil {
		return Report{}, err
	}
	reader, writer, err := os.Pipe()
	if err != nil {
		return Report{}, err
	}
	defer reader.Close()
	cmd := exec.Command(s.Path, append(append([]string{}, s.Args...), "--guest", g.Name, "--report-fd", "3", g.Path)...)
	if cmd.Env = s.Env; cmd.Env == nil {
		cmd.Env = keptEnvironment()
	}
	cmd.Stdout, cmd.Stderr = log.file, log.file
	cmd.ExtraFiles = []*os.File{writer}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err = keepDescriptors(); err == nil {
		err = startShed(cmd)
	}
	writer.Close()
	if err != nil {
		return Report{}, fmt.Errorf("start the supervisor: %w", err)
	}
	defer cmd.Process.Release() // of its pidfd: nobody waits for it
	return await(ctx, cmd, reader, func() string { return log.since(before.Size()) })
}

// await reads the supervisor's one message. The supervisor is not waited for:
// it becomes init's child when this process ends.
func await(ctx context.Context, cmd *exec.Cmd, reader *os.File, words func() string) (Report, error) {
	// Cancelled before the guest is there, the start is taken back.
	stop := context.AfterFunc(ctx, func() { cmd.Process.Signal(syscall.SIGTERM) })
	defer stop()
	reader.SetReadDeadline(time.Now().Add(startTimeout))
	rehearse()
	var m message
	err := json.NewDecoder(io.LimitReader(reader, maxRecord)).Decode(&m)
	switch {
	case err == nil && m.StartError != nil:
		return Report{}, m.StartError
	case err == nil && m.Report != nil && stop():
		return *m.Report, nil
	case ctx.Err() != nil:
		return Report{}, ctx.Err()
	case errors.Is(err, os.ErrDeadlineExceeded):
		cmd.Process.Signal(syscall.SIGTERM)
		return Report{}, fmt.Errorf("the supervisor (pid %d) was not done within %v, and was told to give up: %w", cmd.Process.Pid, startTimeout, err)
	}
	return Report{}, fmt.Errorf("the supervisor ended without a word; it logged:\n\t%s", strings.ReplaceAll(strings.TrimSpace(words()), "\n", "\n\t"))
}

// since is what others have written to the log since it had size bytes.
func (r *rotatingFile) since(size int64) string {
	if !sameFile(r.file, r.path) {
		size = 0 // it was rotated
	}
	f, err := os.Open(r.path)
	if err != nil {
		return ""
	}
	defer f.Close()
	text, _ := io.ReadAll(io.NewSectionReader(f, size, r.max))
	return string(text)
}

// supervisorLogSize bounds supervisor.log, in bytes.
const supervisorLogSize = 1 << 20

// SupervisorLog is where the guest's supervisor in the background logs to, so
// that its log stays bounded: its standard error, to which Start has given the
// guest's supervisor.log. A panic is found there too, since standard error
// follows to the new file when the log is rotated. Where somebody else has
// started the supervisor, it is standard error and nothing more.
func SupervisorLog(base, name string) io.Writer {
	path := guestDir(base, name).path(fileSupervisorLog)
	if !sameFile(os.Stderr, path) {
		return os.Stderr
	}
	return &rotatingFile{path: path, max: supervisorLogSize, file: os.Stderr, std: true}
}

// Reporter lets a supervisor in the background tell its starter, once, how the
// start went.
type Reporter struct{ file *os.File }

// NoReport is for --report-fd of a supervisor that nobody waits for any more.
const NoReport = "none"

// NewReporter takes over the descriptor number that --report-fd named.
func NewReporter(fd string) (*Reporter, error) {
	if fd == NoReport {
		return &Reporter{}, nil
	}
	n, err := strconv.Atoi(fd)
	if err != nil || n < 3 {
		return nil, fmt.Errorf("--report-fd %q: not a descriptor", fd)
	}
	syscall.CloseOnExec(n)
	return &Reporter{file: os.NewFile(uintptr(n), "report")}, nil
}

// Ready reports that the guest is there.
func (r *Reporter) Ready(report Report) { r.send(message{Report: &report}) }

// Failed reports why it is not. After Ready it does nothing.
func (r *Reporter) Failed(err error) {
	r.send(message{StartError: &StartError{Kind: KindOf(err), Msg: err.Error()}})
}

// send tells the starter; one that has gone does not want to know.
func (r *Reporter) send(m message) {
	if r.file == nil {
		return
	}
	_ = json.NewEncoder(r.file).Encode(m)
	r.file.Close()
	r.file = nil
}

// rehearse decodes a message while the supervisor is at work: what encoding/json finds
// out about types it finds out once.
func rehearse() {
	text, _ := json.Marshal(message{Report: &Report{Status: Status{NICs: []NICStatus{{}}}}})
	_ = json.Unmarshal(text, new(message))
}
