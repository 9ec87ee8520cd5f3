package launcher

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

// fault makes a supervisor do something terrible at a step. A step that is to
// fail does so once.
type fault struct {
	When string // "before" or "after"
	Step string
	Do   string // "fail", "kill self" or "kill qemu"; "" for nothing
}

// Files in the run directories' base: the faults for all supervisors below it,
// and, where that is there, the steps that they have come to.
const (
	faultFile = "faults"
	stepFile  = "steps"
)

// setFault has supervisors do something terrible; none, or the zero fault, ends it.
func (b *bench) setFault(faults ...fault) {
	b.t.Helper()
	if len(faults) == 0 || faults[0] == (fault{}) {
		b.must(removeFile(filepath.Join(b.base, faultFile)))
		return
	}
	b.must(writeFaults(b.base, faults))
}

func writeFaults(base string, faults []fault) error {
	text, err := json.Marshal(faults)
	if err != nil {
		return err
	}
	return renameio.WriteFile(filepath.Join(base, faultFile), text, 0o600)
}

// strike is the supervisor's part: it does what is ordered at this step.
func (o order) strike(dir runDir, when, step string) error {
	if f, err := os.OpenFile(filepath.Join(o.Base, stepFile), os.O_WRONLY|os.O_APPEND, 0); err == nil {
		if when == "before" {
			f.WriteString(step + "\n")
		}
		f.Close()
	}
	faults := []fault{o.Fault}
	if text, err := os.ReadFile(filepath.Join(o.Base, faultFile)); err == nil {
		if err := json.Unmarshal(text, &faults); err != nil {
			return err
		}
	}
	for i, f := range faults {
		if f.When != when || f.Step != step {
			continue
		}
		if f.Do == "fail" {
			return errors.Join(errMade, writeFaults(o.Base, slices.Delete(faults, i, i+1)))
		}
		return f.strike(dir)
	}
	return nil
}

var errMade = errors.New("made to fail")

func (f fault) strike(dir runDir) error {
	switch f.Do {
	case "kill qemu":
		if qemu, err := findOrphan(dir); err == nil {
			return qemu.kill()
		}
	case "kill self":
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
	return nil
}

// killSupervisor kills a guest's supervisor and waits until it is gone.
func (b *bench) killSupervisor(name string) {
	b.t.Helper()
	pid, alive := guestDir(b.base, name).supervisor()
	if !alive {
		b.t.Fatalf("%s has no supervisor", name)
	}
	p, err := findProcess(processID{PID: pid})
	b.must(err)
	b.must(p.kill())
	b.awaitUnlocked(name)
}

// awaitUnlocked waits until nobody supervises a guest.
func (b *bench) awaitUnlocked(name string) {
	b.t.Helper()
	for end := time.Now().Add(15 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		if _, alive := guestDir(b.base, name).supervisor(); !alive {
			return
		}
		if time.Now().After(end) {
			b.t.Fatalf("%s's supervisor goes on", name)
		}
	}
}

// startSoon starts the guest again. A supervisor that has just been killed may
// hold the name for the instant that the kernel takes to end it.
func (b *bench) startSoon(path string) (report Report, err error) {
	for range 100 {
		report, err = b.start(mustLoad(b.t, path), order{Paused: true})
		if KindOf(err) != KindState {
			return report, err
		}
		time.Sleep(10 * time.Millisecond)
	}
	return report, err
}

// sockets lists those in run directories.
func (b *bench) sockets() (list []string) {
	filepath.Walk(b.base, func(path string, info os.FileInfo, err error) error {
		if err == nil && info.Mode()&os.ModeSocket != 0 {
			list = append(list, path)
		}
		return nil
	})
	return list
}

// holders lists the processes that have files of guests or of their specs open.
func (b *bench) holders() (list []string) {
	links, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, link := range links {
		target, err := os.Readlink(link)
		if err == nil && !strings.HasPrefix(link, fmt.Sprintf("/proc/%d/", os.Getpid())) &&
			(strings.HasPrefix(target, b.base+"/") || strings.HasPrefix(target, b.specs+"/")) {
			list = append(list, link+" is "+target)
		}
	}
	return list
}

// locks lists those on the files of guests and of their specs.
func (b *bench) locks() (list []string) {
	b.t.Helper()
	text, err := os.ReadFile("/proc/locks")
	b.must(err)
	files := map[string]string{}
	for _, dir := range []string{b.base, b.specs} {
		filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
			if err == nil && info.Mode().IsRegular() {
				st := info.Sys().(*syscall.Stat_t)
				files[fmt.Sprintf("%02x:%02x:%d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino)] = path
			}
			return nil
		})
	}
	for _, line := range strings.Split(string(text), "\n") {
		words := strings.Fields(line) // proc_locks(5)
		if len(words) == 8 && files[words[5]] != "" {
			list = append(list, fmt.Sprintf("lock of %s: %s %s to %s", files[words[5]], words[3], words[6], words[7]))
		}
	}
	return list
}
