package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"vmrun/configs"
	"vmrun/launcher"
	"vmrun/qmp"
)

// The exit statuses.
const (
	exitDone    = 0
	exitFailed  = 1
	exitUsage   = 2 // wrong usage or spec; nothing was created
	exitState   = 3 // no such guest, or not in the state needed
	exitTimeout = 4
)

var exitOf = map[launcher.Kind]int{
	launcher.KindFailed:  exitFailed,
	launcher.KindSpec:    exitUsage,
	launcher.KindState:   exitState,
	launcher.KindTimeout: exitTimeout,
}

// errQuiet fails a verb that has said everything already.
var errQuiet = errors.New("")

// usageError is a word on the command line that means nothing.
type usageError struct{ error }

// timeoutError says that what was waited for did not come.
type timeoutError struct{ error }

// statusError is an error with an exit status of its own. One without words is the
// end of a program that has said everything itself.
type statusError struct {
	error
	status int
}

func (e statusError) Unwrap() error { return e.error }

// ownFailures is the annotation of a verb that ends with another program's exit
// status: the one for failures of vmrun's own.
const ownFailures = "vmrun-own-failures"

// fail prints err the one way that errors are printed, and returns the exit status.
func (a *app) fail(cmd *cobra.Command, err error) int {
	var with statusError
	if errors.As(err, &with) && errors.Is(err, errQuiet) {
		return with.status
	}
	status := a.explainFailure(cmd, err)
	if with.status != 0 {
		return with.status
	}
	if own, err := strconv.Atoi(cmd.Annotations[ownFailures]); err == nil {
		return own
	}
	return status
}

func (a *app) explainFailure(cmd *cobra.Command, err error) int {
	if errors.Is(err, errQuiet) {
		return exitFailed
	}
	var program *exec.ExitError
	if errors.As(err, &program) && program.ExitCode() > 0 {
		return program.ExitCode() // nsenter's program has said what there is to say
	}
	if !isTold(err) {
		complainOf(err)
	}
	if errors.Is(err, os.ErrPermission) && os.Geteuid() != 0 {
		warn("this needs root: sudo %s", cmd.CommandPath())
	}
	if a.usage {
		warn("see %s --help", cmd.CommandPath())
		return exitUsage
	}
	var unit *launcher.UnitError
	if errors.As(err, &unit) && unit.Status >= exitFailed && unit.Status <= exitTimeout {
		return unit.Status // the supervisor's own words and status
	}
	var wrong usageError
	if errors.As(err, &wrong) {
		return exitUsage
	}
	var late timeoutError
	var refused *qmp.Error
	if errors.As(err, &late) || errors.As(err, &refused) && refused.Class == launcher.ClassUnresponsive {
		return exitTimeout
	}
	return exitOf[launcher.KindOf(err)]
}

// complainOf prints an error.
func complainOf(err error) {
	prefix := "vmrun: "
	if launcher.KindOf(err) == launcher.KindSpec {
		prefix = "" // the file and the line come first
	}
	complain(prefix, strings.TrimSpace(err.Error()))
}

// table returns a writer of aligned columns; the caller flushes it.
func table(w io.Writer) *tabwriter.Writer { return tabwriter.NewWriter(w, 0, 8, 2, ' ', 0) }

func (a *app) jsonFlag(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().BoolVar(&a.json, "json", false, "write JSON")
	return cmd
}

// each runs fn for each argument, goes on after a failure, and joins the errors.
func each[T any](args []T, fn func(arg T) error) error {
	var errs []error
	for _, arg := range args {
		errs = append(errs, fn(arg))
	}
	return errors.Join(errs...)
}

// forEach runs fn for each guest that the arguments mean, as each does.
func (a *app) forEach(ctx context.Context, args []string, fn func(ctx context.Context, name string) error) error {
	names, err := a.guestNames(args)
	return errors.Join(err, each(names, func(name string) error { return fn(ctx, name) }))
}

// command runs one QMP command on a guest's control socket.
func (a *app) command(ctx context.Context, name, command string, args, result any) error {
	client, err := launcher.Control(ctx, a.runDir, name)
	if err != nil {
		return err
	}
	defer client.Close()
	err = client.Execute(ctx, command, args, result)
	var refused *qmp.Error
	if errors.As(err, &refused) && strings.HasPrefix(command, "vmrun-") {
		err = refused // the command's name is no word of the user's
	}
	if err != nil {
		return explain(name, err)
	}
	return nil
}

// lost is what a verb has to say when a guest's supervisor ends the connection.
func (a *app) lost(ctx context.Context, name string) error {
	s, err := launcher.Observe(ctx, a.runDir, name)
	if err != nil {
		return err
	}
	if !s.State.Rests() && s.Supervisor == 0 {
		return fmt.Errorf("%s: its supervisor has gone, and the guest goes on: vmrun start %s adopts it", name, name)
	}
	if s.State == launcher.StateRestarting {
		warn("%s: %s", name, stateWords(s))
		return nil
	}
	warn("%s has ended", name)
	return nil
}

// busy says what a guest that has a supervisor already is doing.
func (a *app) busy(ctx context.Context, name string, err error) error {
	var busy *launcher.BusyError
	if !errors.As(err, &busy) {
		return inGuest(name, err)
	}
	s, observeErr := launcher.Observe(ctx, a.runDir, name)
	if observeErr != nil {
		return err
	}
	return fmt.Errorf("%s is %s already: %w", name, s.State, err)
}

// inGuest names the guest in an error that does not name it itself.
func inGuest(name string, err error) error {
	if err == nil || launcher.KindOf(err) == launcher.KindSpec || strings.Contains(err.Error(), name) {
		return err
	}
	return fmt.Errorf("%s: %w", name, err)
}

// explain names the guest, and the way out where QEMU does not answer.
func explain(name string, err error) error {
	var refused *qmp.Error
	if errors.As(err, &refused) && refused.Class == launcher.ClassUnresponsive {
		return fmt.Errorf("%s: %w: QEMU does not answer, and may do it when it does: vmrun stop --force %s ends the guest", name, launcher.ErrUnresponsive, name)
	}
	if errors.As(err, &refused) && refused.Class == launcher.ClassDenied {
		return fmt.Errorf("%s: %s: %w", name, safe(refused.Desc), os.ErrPermission)
	}
	if errors.As(err, &refused) && refused.Class == launcher.ClassSpec {
		return usageError{fmt.Errorf("%s: %s", name, refused.Desc)}
	}
	if errors.As(err, &refused) && (refused.Class == launcher.ClassRefused || refused.Class == launcher.ClassTimeout) {
		return fmt.Errorf("%s: %w", name, classless{refused})
	}
	if errors.Is(err, qmp.ErrClosed) {
		return fmt.Errorf("%s: its supervisor has gone: vmrun start %s adopts the guest if it is still there", name, name)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return timeoutError{fmt.Errorf("%s: its supervisor did not answer in time", name)}
	}
	return fmt.Errorf("%s: %w", name, oneLine{err})
}

// classless is a refusal whose class is no word of the user's.
type classless struct{ refused *qmp.Error }

func (e classless) Error() string { return safe(e.refused.Desc) }
func (e classless) Unwrap() error { return e.refused }

// age is how long ago t was, in words short enough for a column.
func age(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return span(time.Since(t))
}

// due is when t will be.
func due(t time.Time) string {
	if d := time.Until(t).Round(time.Second); d > 0 {
		return "in " + span(d)
	}
	return "now"
}

func span(d time.Duration) string {
	d = d.Round(time.Second)
	switch {
	case d < 2*time.Minute:
		return d.String()
	case d < 2*time.Hour:
		return d.Round(time.Minute).String()[:len(d.Round(time.Minute).String())-2]
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// nicWords names a guest's NICs in a line.
func nicWords(nics []launcher.NICStatus) string {
	if len(nics) == 0 {
		return "no NIC"
	}
	var words []string
	for _, n := range nics {
		words = append(words, strings.Join([]string{n.Lower(), manner(n), n.MAC}, " "))
	}
	return strings.Join(words, ", ")
}

// manner is a NIC's mode, or the kind of one that has none.
func manner(n launcher.NICStatus) string {
	if n.Kind == configs.KindIPvtap {
		return string(n.Kind)
	}
	return string(n.Mode)
}

// addressWords are the best IPv4 and the best IPv6 address of a guest, and how
// many more it has.
func addressWords(s launcher.Status) string {
	var words []string
	list := useful(s.GuestAddresses(), false)
	for _, six := range []bool{false, true} {
		if i := slices.IndexFunc(list, func(a launcher.GuestAddress) bool { return a.IP.Is6() == six }); i >= 0 {
			words = append(words, list[i].IP.String())
		}
	}
	if len(words) == 0 {
		return "-"
	}
	if more := len(list) - len(words); more > 0 {
		words = append(words, fmt.Sprintf("+%d", more))
	}
	return strings.Join(words, " ")
}

// metric is a number in the unit that leaves at most three digits before the
// point: "999 B", "1.2 kB", "34 MB".
func metric(n uint64, unit string) string {
	v, prefix := float64(n), ""
	for _, p := range []string{"k", "M", "G", "T", "P", "E"} {
		if v < 999.5 {
			break
		}
		v, prefix = v/1000, p
	}
	if prefix != "" && v < 9.95 {
		return fmt.Sprintf("%.1f %s%s", v, prefix, unit)
	}
	return fmt.Sprintf("%.0f %s%s", v, prefix, unit)
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
