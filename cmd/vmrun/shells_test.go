package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// installed is what make install puts below a directory, with vmrun as it is now.
func installed(t *testing.T) string {
	t.Helper()
	needs(t, "make")
	bin, dest := t.TempDir(), t.TempDir() // the checkout's own bin is left alone
	cmd := exec.Command("make", "-C", "../..", "install", "BIN="+bin, "DESTDIR="+dest)
	cmd.Env = outsideMake()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("make install: %v: %s", err, out)
	}
	return filepath.Join(dest, "usr/local")
}

// outsideMake is the environment without what make test has put into it.
func outsideMake() []string {
	return slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "MAKE") })
}

// toInstall are the files that make install puts below a prefix.
func toInstall(t *testing.T) []string {
	t.Helper()
	names := []string{
		"bin/vmrun",
		"share/bash-completion/completions/vmrun", "share/zsh/site-functions/_vmrun", "share/fish/vendor_completions.d/vmrun.fish",
		"share/doc/vmrun/LICENSE", "share/vmrun/vmrun.schema.json",
		"lib/systemd/system/vmrun@.service", "lib/systemd/system/vmrun.target", "lib/systemd/system-generators/vmrun-generator",
		"lib/sysusers.d/vmrun.conf", "lib/tmpfiles.d/vmrun.conf",
	}
	for pattern, dir := range map[string]string{"man/*.1": "share/man/man1", "man/*.5": "share/man/man5", "../../configs/examples/*.toml": "share/doc/vmrun/examples"} {
		files, err := filepath.Glob(pattern)
		if err != nil || files == nil {
			t.Fatalf("%s: %v", pattern, err)
		}
		for _, f := range files {
			names = append(names, filepath.Join(dir, filepath.Base(f)))
		}
	}
	slices.Sort(names)
	return names
}

// make install puts everything in place, and no more.
func TestInstall(t *testing.T) {
	root := installed(t)
	programs := []string{"bin/vmrun", "lib/systemd/system-generators/vmrun-generator"}
	want := toInstall(t)
	var got []string
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			name, _ := filepath.Rel(root, path)
			got = append(got, name)
			if info, err := os.Stat(path); err != nil || (info.Mode().Perm() == 0o755) != slices.Contains(programs, name) {
				t.Errorf("%s: mode %v, %v", name, info.Mode(), err)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("installed (-want +got):\n%s", diff)
	}

	cmd := exec.Command("make", "-C", "../..", "uninstall", "PREFIX=", "SYSTEMD=/lib/systemd", "DESTDIR="+root)
	cmd.Env = append(outsideMake(), "VMRUN_RUN_DIR="+t.TempDir()) // where no guest runs
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("make uninstall: %v: %s", err, out)
	}
	err = filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			t.Errorf("uninstalled, and %s is left", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// completions are lines that somebody types, and the words that are offered then,
// with what is said of them.
var completions = []struct {
	line string
	want map[string]string
}{
	{"vmrun st", verbsWith("st")},
	{"vmrun stop ", map[string]string{"web1": "ended", "web2": "starting", "lab.toml": "", "lib.toml": ""}},
	{"vmrun check l", map[string]string{"lab.toml": "", "lib.toml": ""}},
	{"vmrun nic web1 ", map[string]string{"attach": "attach KEY=VALUE...", "detach": "detach NIC", "set": "set NIC KEY=VALUE..."}},
	{"vmrun nic web1 detach ", map[string]string{"net0": "eth0.5 bridge 02:00:00:00:00:01", "net1": "eth1 private 02:00:00:00:00:02"}},
	{"vmrun nic web1 attach parent=eth0 m", map[string]string{
		"mac=": "The MAC address, unicast, with ':' or '-' between the bytes", "mode=": "How the guest meets the others on the same parent",
		"model=": "QEMU's network device", "mtu=": "The largest packet in bytes, 68 to 65535 and not more than the parent's MTU",
		"multicast=": "Which multicast reaches the guest",
	}},
	{"vmrun nic web1 set net0 mode=", map[string]string{"bridge": "", "private": "", "vepa": "", "passthru": "", "source": ""}},
	{"vmrun wait --for=", map[string]string{"running": "its CPUs run", "ip": "it has an address", "ready": "it is as far as ready.when says", "stopped": "it has ended for good"}},
	{"vmrun wait --for ", map[string]string{"running": "its CPUs run", "ip": "it has an address", "ready": "it is as far as ready.when says", "stopped": "it has ended for good"}},
	{"vmrun help stop.", map[string]string{"stop.timeout": "From the power-down to quit", "stop.quit_timeout": "From quit to SIGKILL"}},
}

// verbsWith are the verbs that begin so.
func verbsWith(prefix string) map[string]string {
	want := map[string]string{}
	for _, cmd := range verbsOf((&app{}).root()) {
		if strings.HasPrefix(cmd.Name(), prefix) {
			want[cmd.Name()] = cmd.Short
		}
	}
	return want
}

// The shells themselves complete, with what make install has put in place.
func TestCompletionInShells(t *testing.T) {
	share := filepath.Join(installed(t), "share")
	work := t.TempDir()
	for name, text := range map[string]string{
		"lab.toml": "", "lib.toml": "", "notes": "",
		"inputrc": "set show-all-if-ambiguous on\nset bell-style none\nset page-completions off\nset completion-display-width 0\nset completion-query-items 0\nset enable-bracketed-paste off\n",
		"run/web1/state": `{"version": 2, "boot_id": "another", "guest": {"Name": "web1", "CPUs": 1}, "qemu": {"pid": 1, "start": 1}, "committed": true,
			"children": [{"Name": "net0", "Index": 16777216, "Queues": 1, "Parent": "eth0", "VLAN": 5, "Mode": "bridge", "MAC": "AgAAAAAB"},
				{"Name": "net1", "Index": 16777217, "Queues": 1, "Parent": "eth1", "Mode": "private", "MAC": "AgAAAAAC"}],
			"ended": {"reason": "crash", "detail": "QEMU ended with status 1", "at": "2026-01-02T03:04:05Z"}}`,
		"run/web2/lock": fmt.Sprintln(os.Getpid()),
	} {
		file := filepath.Join(work, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	lock(t, filepath.Join(work, "run/web2/lock"))
	env := []string{
		"PATH=" + filepath.Join(share, "../bin") + ":" + os.Getenv("PATH"), "VMRUN_RUN_DIR=" + filepath.Join(work, "run"), "GORACE=atexit_sleep_ms=0",
		"HOME=" + work, "XDG_DATA_DIRS=" + share + ":/usr/share", "XDG_CONFIG_HOME=" + filepath.Join(work, ".config"), "XDG_DATA_HOME=" + filepath.Join(work, ".data"),
		"TERM=dumb", "LC_ALL=C.UTF-8", "PS1=> ", "INPUTRC=" + filepath.Join(work, "inputrc"),
	}
	for _, shell := range []struct {
		words []string
		setup string // typed first
	}{
		{[]string{"bash", "--norc", "--noprofile", "-i"}, "source /usr/share/bash-completion/bash_completion"},
		{[]string{"zsh", "-f", "-i"}, "PS1='> '; unsetopt listambiguous promptsp; fpath=(" + filepath.Join(share, "zsh/site-functions") + " $fpath); autoload -U compinit; compinit -D"},
		{[]string{"fish"}, ""},
	} {
		t.Run(shell.words[0], func(t *testing.T) {
			needs(t, shell.words[0])
			cmd := exec.Command(shell.words[0], shell.words[1:]...)
			cmd.Dir, cmd.Env = work, env
			complete := completeFish
			if shell.setup != "" {
				complete = newTypist(t, cmd, shell.setup).complete
			}
			for _, tt := range completions {
				got := offered(complete(t, cmd, tt.line))
				if diff := cmp.Diff(tt.want, got); diff != "" {
					t.Errorf("%q (-want +got):\n%s", tt.line, diff)
				}
			}
		})
	}
}

// lock holds a guest's lock as its supervisor does.
func lock(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}); err != nil {
		t.Fatal(err)
	}
}

// offer is a word with what is said of it, as bash, zsh and fish show it.
var offer = regexp.MustCompile(`^(\S+)(?: +\((.*)\)| +-- (.*)|\t(.*))$`)

// offered reads a shell's list.
func offered(lines []string) map[string]string {
	words := map[string]string{}
	add := func(word, said string) {
		// bash shows only what is after the "=" that it has, fish what is before too.
		if i := strings.IndexByte(word, '='); i >= 0 && i < len(word)-1 {
			word = word[i+1:]
		}
		words[word] = strings.TrimSpace(said)
	}
	for _, line := range lines {
		line = strings.TrimRight(line, " ")
		if m := offer.FindStringSubmatch(line); m != nil {
			add(m[1], m[2]+m[3]+m[4])
			continue
		}
		for _, word := range strings.Fields(line) {
			add(word, "")
		}
	}
	return words
}

// completeFish asks fish, which can be asked.
func completeFish(t *testing.T, like *exec.Cmd, line string) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "fish", "-c", "complete -C $argv[1]", line)
	cmd.Dir, cmd.Env = like.Dir, like.Env
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("fish: %v", err)
	}
	return strings.Split(strings.TrimSpace(string(out)), "\n")
}

// typist sits at a terminal with a shell that has "> " for its prompt.
type typist struct{ far *os.File }

func newTypist(t *testing.T, shell *exec.Cmd, setup string) *typist {
	t.Helper()
	far, near := openTerminal(t)
	if err := unix.IoctlSetWinsize(int(far.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 60, Col: 160}); err != nil {
		t.Fatal(err)
	}
	shell.Stdin, shell.Stdout, shell.Stderr = near, near, near
	shell.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	err := shell.Start()
	near.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		shell.Process.Kill()
		shell.Wait()
	})
	p := &typist{far}
	p.read(t, func(said string) bool { return strings.HasSuffix(said, "> ") })
	p.enter(t, setup)
	return p
}

// enter types a line and the Enter key, and waits for the next prompt.
func (p *typist) enter(t *testing.T, line string) {
	t.Helper()
	p.send(t, line+"\n")
	p.read(t, func(said string) bool { return strings.HasSuffix(said, "\n> ") })
}

func (p *typist) send(t *testing.T, keys string) {
	t.Helper()
	if _, err := p.far.WriteString(keys); err != nil {
		t.Fatal(err)
	}
}

// escapes are what a shell sends a terminal beside text.
var escapes = regexp.MustCompile(`\x1b\[[0-9;?]*[a-zA-Z]|\x1b[=>]|[\a\r]`)

// read returns what the shell writes until it is all.
func (p *typist) read(t *testing.T, all func(said string) bool) string {
	t.Helper()
	if err := p.far.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	raw := ""
	for buf := make([]byte, 4096); ; {
		n, err := p.far.Read(buf)
		if err != nil {
			t.Fatalf("%v after %q", err, raw)
		}
		raw += string(buf[:n])
		if said := escapes.ReplaceAllString(raw, ""); all(said) {
			return said
		}
	}
}

// complete types a line and the Tab key, and returns the lines of the list, which
// stands between that line and itself once more.
func (p *typist) complete(t *testing.T, _ *exec.Cmd, line string) []string {
	t.Helper()
	p.send(t, line+"\t")
	said := p.read(t, func(said string) bool { return strings.Contains(said, "\n> "+line) })
	_, list, _ := strings.Cut(said, "\n")
	list, _, _ = strings.Cut(list, "\n> ")
	p.enter(t, "\x15") // Ctrl-U takes the line back
	return strings.Split(list, "\n")
}
