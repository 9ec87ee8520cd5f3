package main

import (
	"flag"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"vmrun/configs"
)

var update = flag.Bool("update", false, "write the manual pages anew")

// The manual is written by TestManual -update (make docs), from the verbs' help,
// complete.toml and what the README has in tables. Nothing of it is in vmrun.

// environment is what the manual says of variables; "" are all verbs.
var environment = []struct{ verb, name, text string }{
	{"", "VMRUN_RUN_DIR", "The directory of the guests' run directories, where --run-dir is not given."},
	{"", "RUNTIME_DIRECTORY", "The same, where neither is set. systemd sets it for a unit with RuntimeDirectory=."},
	{"init", "SUDO_USER", "The user who called sudo, after whom the guest's is called and whose public keys it gets. sudo sets it."},
	{"ssh", "SUDO_USER", "The user who called sudo, whose private keys are offered beside root's. sudo sets it."},
	{"run", "JOURNAL_STREAM", "Set by systemd for a unit: the log goes to the journal, without time stamps of its own."},
	{"run", "INVOCATION_ID", "Set by systemd for a run of a unit: entries in the journal have it as VMRUN_INVOCATION_ID."},
	{"run", "NOTIFY_SOCKET", "Set by systemd for a unit with Type=notify: it is told how far the guest has come, and that QEMU answers."},
	{"stop-post", "SERVICE_RESULT", "Set by systemd for ExecStopPost=: how the unit's main process ended."},
	{"tree", "NO_COLOR", "Set to anything, it keeps the drawing without colours."},
	{"tree", "TERM", `With "dumb" there are no colours either.`},
	{"tree", "LC_ALL, LC_CTYPE, LANG", "Whether the terminal shows UTF-8; without it the drawing is made of ASCII."},
}

// manual returns the pages by the names of their files.
func manual(t *testing.T) map[string]string {
	t.Setenv("VMRUN_RUN_DIR", "") // the defaults of flags are those without it
	t.Setenv("RUNTIME_DIRECTORY", "")
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	root := (&app{}).root()
	pages := map[string]string{"vmrun.1": rootPage(root, string(readme)), "vmrun.toml.5": specPage(t)}
	for _, cmd := range verbsOf(root) {
		pages["vmrun-"+cmd.Name()+".1"] = verbPage(cmd, string(readme))
	}
	return pages
}

// verbsOf are the verbs that people type.
func verbsOf(root *cobra.Command) []*cobra.Command {
	return slices.DeleteFunc(slices.Clone(root.Commands()), func(cmd *cobra.Command) bool { return cmd.Hidden })
}

func rootPage(root *cobra.Command, readme string) string {
	p := newPage("vmrun", "1", root.Short)
	p.section("SYNOPSIS")
	p.line("%s %s [%s...]", strong("vmrun"), slanted("VERB"), slanted("ARGUMENT"))
	p.section("DESCRIPTION")
	p.prose(`vmrun starts QEMU virtual machines whose network cards sit directly on a NIC of the host, as macvtap children, and looks after each until it ends.
What a guest is stands in a spec, a file that vmrun.toml(5) describes. Each verb has a page of its own, vmrun-VERB(1).`, ".PP")
	for _, group := range root.Groups() {
		p.line(".SS %s", roff(strings.TrimSuffix(group.Title, ":")))
		for _, cmd := range verbsOf(root) {
			if cmd.GroupID == group.ID {
				p.term(strong(cmd.Use), sentence(cmd.Short))
			}
		}
	}
	p.options("OPTIONS", root)
	p.exitStatus(readme)
	p.environment("*")
	p.files(readme, true)
	see := []string{"vmrun.toml(5)", "qemu-system-x86_64(1)", "ip-link(8)", "tc(8)"}
	for _, cmd := range verbsOf(root) {
		see = append(see, "vmrun-"+cmd.Name()+"(1)")
	}
	p.seeAlso(see)
	return p.String()
}

func verbPage(cmd *cobra.Command, readme string) string {
	p := newPage("vmrun-"+cmd.Name(), "1", cmd.Short)
	p.section("SYNOPSIS")
	usage := strings.Fields(cmd.UseLine())
	p.line("%s", strings.TrimSpace(strong("vmrun "+cmd.Name())+" "+roff(strings.Join(usage[2:], " "))))
	p.section("DESCRIPTION")
	long := cmd.Long
	if long == "" {
		long = sentence(cmd.Short)
	}
	p.prose(long, ".PP")
	for _, sub := range verbsOf(cmd) {
		p.term(strong(sub.CommandPath()), sentence(sub.Short))
	}
	p.options("OPTIONS", cmd)
	p.exitStatus(readme)
	p.environment(cmd.Name())
	if takesGuests(cmd) {
		p.files(readme, false)
	}
	if cmd.Example != "" {
		p.section("EXAMPLES")
		p.verbatim(strings.Split(strings.Trim(cmd.Example, "\n"), "\n"))
	}
	p.seeAlso(append([]string{"vmrun(1)", "vmrun.toml(5)"}, mentioned(cmd)...))
	return p.String()
}

// mentioned are the pages of the other verbs that a verb's help speaks of.
func mentioned(cmd *cobra.Command) []string {
	text := cmd.Short + cmd.Long + cmd.Example + cmd.LocalFlags().FlagUsages()
	var see []string
	for _, other := range verbsOf(cmd.Root()) {
		if other != cmd && regexp.MustCompile(`\bvmrun `+other.Name()+`\b`).MatchString(text) {
			see = append(see, "vmrun-"+other.Name()+"(1)")
		}
	}
	return see
}

func (p *page) options(title string, cmd *cobra.Command) {
	p.section(title)
	add := func(f *pflag.Flag) {
		tag := strong("--" + f.Name)
		if f.Shorthand != "" {
			tag = strong("-"+f.Shorthand) + ", " + tag
		}
		kind, usage := pflag.UnquoteUsage(f)
		text := sentence(usage)
		if f.Value.Type() != "bool" {
			tag += "=" + slanted(strings.ToUpper(kind))
			if f.DefValue != "" {
				text += " Default: " + f.DefValue + "."
			}
		}
		p.term(tag, text)
	}
	cmd.InitDefaultHelpFlag()
	cmd.InitDefaultVersionFlag()
	cmd.LocalFlags().VisitAll(add)
	cmd.InheritedFlags().VisitAll(add)
}

func (p *page) exitStatus(readme string) {
	p.section("EXIT STATUS")
	for _, row := range tableIn(readme, "| exit status | |") {
		p.term(strong(row[0]), sentence(row[1]))
	}
}

func (p *page) environment(verb string) {
	p.section("ENVIRONMENT")
	for _, e := range environment {
		if e.verb == "" || e.verb == verb || verb == "*" {
			p.term(strong(e.name), e.text)
		}
	}
}

func (p *page) files(readme string, all bool) {
	p.section("FILES")
	p.term(slanted("/etc/vmrun/NAME.toml"), "The spec of the guest NAME, where it is to be found by that name.")
	p.term(slanted("/run/vmrun/NAME/"), "The run directory of the guest NAME.")
	if !all {
		return
	}
	p.line(".RS")
	for _, row := range tableIn(readme, "| file | |") {
		p.term(slanted(row[0]), sentence(row[1]))
	}
	p.line(".RE")
}

// tableIn returns the rows of the README's table with this head, without backquotes.
func tableIn(readme, head string) [][]string {
	_, rest, ok := strings.Cut(readme, "\n"+head+"\n|---|---|\n")
	if !ok {
		panic("the README has no table " + head)
	}
	body, _, _ := strings.Cut(rest, "\n\n")
	var list [][]string
	for _, line := range strings.Split(body, "\n") {
		cells := strings.Split(strings.ReplaceAll(strings.Trim(line, "| "), "`", ""), " | ")
		list = append(list, cells)
	}
	return list
}

// seeAlso lists pages in the order of their sections.
func (p *page) seeAlso(pages []string) {
	section := func(name string) string { return name[strings.IndexByte(name, '('):] }
	slices.SortStableFunc(pages, func(a, b string) int { return strings.Compare(section(a)+a, section(b)+b) })
	p.section("SEE ALSO")
	for i, name := range slices.Compact(pages) {
		comma := ","
		if i == len(pages)-1 {
			comma = ""
		}
		at := strings.IndexByte(name, '(')
		p.line(".BR %s %s%s", roff(name[:at]), name[at:], comma)
	}
}

func specPage(t *testing.T) string {
	p := newPage("vmrun.toml", "5", "what a guest of vmrun's is, or a fleet of guests")
	p.section("SYNOPSIS")
	p.line("%s", slanted("/etc/vmrun/NAME.toml"))
	p.section("DESCRIPTION")
	p.prose("A spec says in TOML what a guest is: its disks, its NICs, and how it lives and ends. One file can hold many guests, a fleet. vmrun check tells what is wrong with one, and vmrun help KEY what a key means.", ".PP")
	p.line(".PP")
	spec, fleet := configs.Reference(), configs.FleetReference()
	p.prose(spec[0].Text, ".PP")
	p.section("TOP LEVEL")
	p.keys(spec[1:], p.section)
	p.section("FLEETS")
	p.prose(fleet[0].Text, ".PP")
	p.keys(fleet[1:], func(header string) { p.line(".SS %s", roff(header)) })
	p.section("FILES")
	p.term(slanted("/usr/local/share/doc/vmrun/examples/"), "Specs, among them complete.toml and complete-fleet.toml, which have every key.")
	p.term(slanted("/usr/local/share/vmrun/vmrun.schema.json"), "The JSON schema of specs. An editor with taplo in it checks and completes a spec whose first line is #:schema and this path.")
	p.section("EXAMPLES")
	for _, name := range []string{"minimal.toml", "two-nics.toml", "pinned.toml", "fleet.toml"} {
		text, err := os.ReadFile(filepath.Join("../../configs/examples", name))
		if err != nil {
			t.Fatal(err)
		}
		p.verbatim(strings.Split(strings.TrimSpace(string(text)), "\n"))
	}
	p.seeAlso([]string{"vmrun(1)", "vmrun-check(1)", "vmrun-plan(1)", "vmrun-doctor(1)", "vmrun-help(1)", "qemu-system-x86_64(1)"})
	return p.String()
}

// keys writes what keys mean, with a heading for each table.
func (p *page) keys(list []configs.Key, heading func(string)) {
	for _, k := range list {
		if k.IsTable() {
			heading(k.Header())
			p.prose(k.Text, ".PP")
			continue
		}
		values := slanted(k.Values())
		if k.Must {
			values += ", required"
		}
		p.term(strong(k.Name())+": "+values, k.Text)
	}
}

// The committed pages are those that the verbs and the comments make.
func TestManual(t *testing.T) {
	pages := manual(t)
	if *update {
		old, err := filepath.Glob("man/*.[15]")
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range old {
			os.Remove(file)
		}
		for name, text := range pages {
			if err := os.WriteFile(filepath.Join("man", name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	files, err := os.ReadDir("man")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if _, ok := pages[f.Name()]; !ok {
			t.Errorf("man/%s is nobody's: make docs", f.Name())
		}
	}
	for _, name := range slices.Sorted(maps.Keys(pages)) {
		text, err := os.ReadFile(filepath.Join("man", name))
		if err != nil {
			t.Errorf("%v: make docs", err)
		} else if diff := cmp.Diff(string(text), pages[name]); diff != "" {
			t.Errorf("man/%s is not up to date: make docs (-is +should):\n%s", name, diff)
		}
	}
}

// What the manual is to have, it has, as people see it.
func TestManualIsWhole(t *testing.T) {
	spec := rendered(t, "vmrun.toml.5")
	for _, k := range append(configs.Reference()[1:], configs.FleetReference()[1:]...) {
		want := k.Name() + ":"
		if k.IsTable() {
			want = k.Header()
		}
		if !regexp.MustCompile(`(?m)^ *` + regexp.QuoteMeta(want)).MatchString(spec) {
			t.Errorf("vmrun.toml(5) has no %s", k.Path)
		}
	}
	sources, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	root := rendered(t, "vmrun.1")
	for _, file := range sources {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`Getenv\("(\w+)"\)`).FindAllStringSubmatch(string(text), -1) {
			if !strings.HasSuffix(file, "_test.go") && !strings.Contains(root, m[1]) {
				t.Errorf("%s asks for %s: say so in environment", file, m[1])
			}
		}
	}
}

// rendered is a page as people see it in a terminal.
func rendered(t *testing.T, name string) string {
	t.Helper()
	needs(t, "man")
	cmd := exec.Command("man", "--warnings", "-l", filepath.Join("man", name))
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "MANWIDTH=80")
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil || said.Len() > 0 {
		t.Errorf("man %s: %v: %s", name, err, said.String())
	}
	return string(out)
}

// The pages render without a warning.
func TestManualRenders(t *testing.T) {
	needs(t, "groff", "mandoc")
	pages, err := filepath.Glob("man/*.[15]")
	if err != nil || len(pages) < 20 {
		t.Fatalf("%d pages, %v", len(pages), err)
	}
	commands := [][]string{{"mandoc", "-T", "lint", "-W", "warning"}}
	for _, width := range []string{"60n", "80n", "132n"} {
		commands = append(commands, []string{"groff", "-ww", "-z", "-man", "-Tutf8", "-rLL=" + width})
	}
	for _, words := range commands {
		out, err := exec.Command(words[0], append(words[1:], pages...)...).CombinedOutput()
		said := regexp.MustCompile(`(?m)^.*missing date.*\n`).ReplaceAll(out, nil) // it would change with nothing else
		if len(said) > 0 || err != nil && len(out) == 0 {
			t.Errorf("%s: %v: %s", strings.Join(words, " "), err, said)
		}
	}
}

// needs skips a test where a program is missing.
func needs(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil && os.Getenv("VMRUN_TEST_REQUIRE") != "1" {
			t.Skipf("needs %s: apt-get install it, as make test does", p)
		}
	}
}
