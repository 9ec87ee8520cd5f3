package guesttest

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"vmrun/netsetup/nettest"
)

// kernelModules are the drivers that package netsetup meets on other hosts than
// the one where its tests run otherwise.
var kernelModules = []string{
	"macvtap", "ipvtap", "ipvlan", "8021q", "bonding", "bridge", "dummy", "veth", "tun", "vhost_net",
	"nf_tables", "nft_limit", "nft_objref", "sch_tbf", "sch_ingress", "cls_bpf",
}

// kernelPrograms are what those tests call.
var kernelPrograms = []string{"ip", "bridge", "qemu-system-x86_64"}

// qemuParts are what QEMU does not start without.
var qemuParts = []string{"/usr/share/seabios/bios-256k.bin", "/usr/lib/x86_64-linux-gnu/qemu/accel-tcg-x86_64.so"}

// kernelTests are those that run there: of what the host may lack, and of what an
// older kernel may do otherwise.
const kernelTests = "VLAN|Parent$|IPvtap|Vhost|QueueLengths|PassthruMAC|Promiscuity|KernelForgets" +
	"|^TestPin(MAC|CutShort|Segments|Fails|LeavesNothing|None)$|^TestLearn(Filter|OnPinnedChild|AcrossLinkChanges|Errors)$" +
	"|^TestShape(Again|Errors)|SuperFrame|DropsOfLimits|SharesTheShim"

// kernelSkips are of those what needs no kernel, or another: Linux 6.1 renames no
// link that is up.
const kernelSkips = "^TestCheck|^TestSurvey|ParentListens|VLANUnsupported|ShimFollows"

// kernelPackages are those whose tests run there. Of the launcher they are those
// of cgroups and of the clock.
var kernelPackages = []struct{ name, run, skip string }{
	{"netsetup", kernelTests, kernelSkips},
	{"launcher", "^Test(Limits|LimitsReturn|Delegation|Clock)$", "^$"},
}

// TestKernel runs tests on Debian's kernel, which has links that the host's may
// lack, and where the clock may be set: as root in a guest that vmrun starts. Each
// must pass there; one that is skipped is a failure.
func TestKernel(t *testing.T) {
	lab := nettest.New(t)
	programs := map[string]string{}
	for _, p := range kernelPackages {
		programs[p.name+".test"] = build(t, "test", "-c", "vmrun/"+p.name)
	}
	for _, name := range kernelPrograms {
		addProgram(t, programs, name)
	}
	for _, path := range qemuParts {
		programs[path] = path
	}
	files := Options{Modules: kernelModules, Files: programs}.Image(t)
	t.Cleanup(func() { os.Remove(files.Initrd) }) // large, and as good as never the same again
	guest := startByVmrun(t, lab, files)
	start := time.Now()
	var passed []string
	for _, p := range kernelPackages {
		t.Run(p.name, func(t *testing.T) {
			before := len(guest.log(t))
			err := guest.exec(t, "VMRUN_TEST_KERNEL=guest", "VMRUN_TEST_REQUIRE=1",
				"/"+p.name+".test", "-test.v", "-test.timeout=170s", "-test.run="+p.run, "-test.skip="+p.skip)
			log := guest.log(t)[before:]
			results := readResults(log)
			if err != nil || len(results["FAIL"])+len(results["SKIP"]) > 0 || len(results["PASS"]) == 0 {
				t.Fatalf("failed: %q, skipped: %q, passed: %d; %v\n%s", results["FAIL"], results["SKIP"], len(results["PASS"]), err, quote(log))
			}
			passed = append(passed, results["PASS"]...)
		})
	}
	// .ci/gotest reads this line.
	t.Logf("%d tests on %s in %v: %s", len(passed), filepath.Base(filepath.Dir(files.Kernel)),
		time.Since(start).Round(100*time.Millisecond), strings.Join(passed, " "))
}

// build runs the go command, static and without the race detector, and returns
// what it made.
func build(t *testing.T, words ...string) string {
	t.Helper()
	last := len(words) - 1
	out := filepath.Join(t.TempDir(), filepath.Base(words[last]))
	cmd := exec.Command("go", slices.Concat(words[:last], []string{"-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", out}, words[last:])...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(words, " "), err, msg)
	}
	return out
}

var library = regexp.MustCompile(`(?:=> )?(/\S+) \(0x`)

// addProgram adds one of the host's programs with its libraries, each where it is.
func addProgram(t *testing.T, files map[string]string, name string) {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatal(err)
	}
	files["/usr/bin/"+name] = path
	out, err := exec.Command("ldd", path).Output()
	if err != nil {
		t.Fatalf("ldd %s: %v", path, err)
	}
	for _, match := range library.FindAllStringSubmatch(string(out), -1) {
		files[match[1]] = match[1]
	}
}

// kernelGuest is a guest that vmrun looks after.
type kernelGuest struct {
	console string // its socket
	logFile string
	runs    int
}

// startByVmrun starts the guest on the lab with the program itself, and returns
// it once it serves commands. It ends with the test.
func startByVmrun(t *testing.T, lab *nettest.Lab, files Files) *kernelGuest {
	t.Helper()
	vmrun := build(t, "build", "vmrun/cmd/vmrun")
	base, err := os.MkdirTemp("/tmp", "vmrun-") // short: a socket's path has 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	spec := filepath.Join(base, "kernel.toml")
	text := fmt.Sprintf("cpus = 2\nmemory = \"768MiB\"\naccel = \"tcg\"\n[boot]\nkernel = %q\ninitrd = %q\ncmdline = %q\n[console]\nlog_size = \"16MiB\"\n[[nic]]\nparent = %q\n",
		files.Kernel, files.Initrd, Cmdline, lab.Host.NIC)
	if err := os.WriteFile(spec, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(words ...string) {
		t.Helper()
		if out, err := lab.Host.Run(exec.Command(vmrun, append([]string{"--run-dir", base}, words...)...)); err != nil {
			t.Fatalf("vmrun %s: %v\n%s", strings.Join(words, " "), err, out)
		}
	}
	before := lab.Snapshot(t, base)
	run("start", spec)
	t.Cleanup(func() {
		run("kill", "kernel")
		before.Check(t)
	})
	g := &kernelGuest{console: filepath.Join(base, "kernel", "console.sock"), logFile: filepath.Join(base, "kernel", "console.log")}
	t.Logf("ready: %s", g.wait(t, time.Minute, regexp.MustCompile(saysPrefix+`ready (\S+)`))[1])
	return g
}

// log returns what came from the console so far. It is vmrun's own record,
// complete where a viewer of the console that is too slow misses some.
func (g *kernelGuest) log(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(g.logFile)
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(string(text), "\r\n", "\n")
}

// quote marks lines as the guest's: some of them look like go test's own.
func quote(log string) string { return "| " + strings.ReplaceAll(log, "\n", "\n| ") }

// wait waits until the log has what matches.
func (g *kernelGuest) wait(t *testing.T, limit time.Duration, pattern *regexp.Regexp) []string {
	t.Helper()
	for deadline := time.Now().Add(limit); ; time.Sleep(100 * time.Millisecond) {
		log := g.log(t)
		if match := pattern.FindStringSubmatch(log); match != nil {
			return match
		}
		if time.Now().After(deadline) {
			t.Fatalf("no %s within %v:\n%s", pattern, limit, quote(log))
		}
	}
}

// exec runs a program in the guest to its end.
func (g *kernelGuest) exec(t *testing.T, words ...string) error {
	t.Helper()
	g.runs++
	id := fmt.Sprintf("#tests%d", g.runs)
	console, err := net.Dial("unix", g.console) // for each: who does not read is shown out
	if err != nil {
		t.Fatal(err)
	}
	defer console.Close()
	if _, err := fmt.Fprintf(console, "%s exec %s\n", id, strings.Join(words, " ")); err != nil {
		t.Fatal(err)
	}
	if end := g.wait(t, 3*time.Minute, regexp.MustCompile(saysPrefix+`(ok|error) `+id+` ?(.*)`)); end[1] != "ok" {
		return errors.New(end[2])
	}
	return nil
}

var result = regexp.MustCompile(`(?m)^--- (PASS|FAIL|SKIP): (\S+) `)

// readResults finds the tests in what go test -v wrote, by how they ended.
func readResults(text string) map[string][]string {
	found := map[string]map[string]bool{}
	for _, m := range result.FindAllStringSubmatch(text, -1) {
		if found[m[1]] == nil {
			found[m[1]] = map[string]bool{}
		}
		found[m[1]][m[2]] = true
	}
	results := map[string][]string{}
	for how, names := range found {
		results[how] = slices.Sorted(maps.Keys(names))
	}
	return results
}
