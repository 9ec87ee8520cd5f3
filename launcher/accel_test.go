package launcher

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmrun/configs"
)

// fakeQEMU is a shell script in QEMU's place, for KVMs that this machine does
// not have. What it proves is what is done with an answer, not that KVM works.
// Its verdict in the cache goes with the test.
func fakeQEMU(t *testing.T, script string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fake-qemu")
	syscall.ForkLock.RLock() // or a process that is started meanwhile has it open, and it cannot be run
	err := os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o755)
	syscall.ForkLock.RUnlock()
	if err != nil {
		t.Fatal(err)
	}
	forgetVerdict(t, path, "host")
	return path
}

// forgetVerdict removes what is known of a QEMU, now and after the test.
func forgetVerdict(t *testing.T, qemu, cpu string) (cache string) {
	t.Helper()
	key, err := probeKey(qemu, cpu)
	if err != nil {
		t.Fatal(err)
	}
	cache = "/run/vmrun.kvm-" + key
	os.Remove(cache)
	t.Cleanup(func() { os.Remove(cache) })
	return cache
}

// needKVMDevice skips a test of the real /dev/kvm where kernel or processor have
// nothing behind it, which nobody can install.
func needKVMDevice(t *testing.T) {
	t.Helper()
	needRoot(t)
	if f, err := os.OpenFile(kvmDevice, os.O_RDWR, 0); err == nil {
		f.Close()
		return
	}
	if devices, err := os.ReadFile("/proc/misc"); err == nil && !strings.Contains(string(devices), " kvm\n") {
		t.Skip("this kernel has no KVM: not on this machine")
	}
	lack(t, "no /dev/kvm: modprobe kvm_intel || modprobe kvm_amd")
}

// fakeKVM has /dev/null stand in for a /dev/kvm that this machine may not have, where
// QEMU is a fake as well: what follows from its answer is tested.
func fakeKVM(t *testing.T) {
	t.Helper()
	needRoot(t)
	real := kvmDevice
	kvmDevice = os.DevNull
	t.Cleanup(func() { kvmDevice = real })
}

func TestProbeWithAFakeQEMU(t *testing.T) {
	for _, tt := range []struct {
		name, script string
		want         string // in the verdict; "" for works
		atLeast      time.Duration
	}{
		{"greets", "echo SeaBIOS; exec sleep 60", "", 0},
		{"greets and ends", "echo SeaBIOS", "", 0},
		{"refuses", "echo 'failed to set MSR 0x48d' >&2; kill -ABRT $$", "-accel kvm -cpu host: signal: aborted: failed to set MSR 0x48d", 0},
		{"ends silently", "exit 1", "exit status 1: it said nothing", 0},
		{"hangs", "exec sleep 60", "did not end within 3s", probeTimeout},
		{"hangs below a wrapper", "sleep 20; true", "did not end within 3s", probeTimeout},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			start := time.Now()
			verdict := probeKVM(t.Context(), fakeQEMU(t, tt.script), "host")
			if (verdict == "") != (tt.want == "") || !strings.Contains(verdict, tt.want) {
				t.Errorf("verdict %q, want %q", verdict, tt.want)
			}
			if took := time.Since(start); took < tt.atLeast || took > probeTimeout+5*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
}

// What firmware is to say, it says, under an accelerator that this machine has.
func TestProbeSaysSomething(t *testing.T) {
	needRoot(t)
	for arch, p := range platforms {
		t.Run(string(arch), func(t *testing.T) {
			qemu, err := exec.LookPath(p.binary)
			if err != nil && arch != configs.ArchX86 && os.Getenv("VMRUN_TEST_ALL") != "1" {
				t.Skipf("no %s: make test-all", p.binary)
			}
			if err != nil {
				lack(t, "needs QEMU: apt-get install "+p.pkg)
			}
			if verdict := probeAccel(t.Context(), arch, qemu, "tcg", "max"); verdict != "" {
				t.Error(verdict)
			}
		})
	}
}

// A guest of another architecture is emulated, and cannot ask for KVM.
func TestAccelOfAnotherArchitecture(t *testing.T) {
	other := configs.ArchARM
	if archOf(runtime.GOARCH) == other {
		other = configs.ArchX86
	}
	for _, tt := range []struct{ accel, want, err string }{
		{"auto", "tcg", ""},
		{"tcg", "tcg", ""},
		{"kvm", "", `/srv/web1.toml:1: accel: kvm does not work here: KVM runs guests of the host's own architecture only: use accel = "auto" or "tcg"`},
	} {
		g := parseSpec(t, `accel = "`+tt.accel+`"`, `arch = "`+string(other)+`"`, disk)
		got, err := chooseAccel(t.Context(), g, "/none")
		if string(got) != tt.want || (err == nil) != (tt.err == "") || err != nil && err.Error() != tt.err {
			t.Errorf("%s: %q, %v", tt.accel, got, err)
		}
	}
}

func TestChooseAccel(t *testing.T) {
	fakeKVM(t)
	works := fakeQEMU(t, "echo SeaBIOS; exec sleep 60")
	broken := fakeQEMU(t, "echo no >&2; exit 1")
	for _, tt := range []struct {
		name  string
		qemu  string
		accel configs.Accel
		want  configs.Accel
		err   string
	}{
		{"auto, works", works, configs.AccelAuto, configs.AccelKVM, ""},
		{"auto, broken", broken, configs.AccelAuto, configs.AccelTCG, ""},
		{"kvm, works", works, configs.AccelKVM, configs.AccelKVM, ""},
		{"kvm, broken", broken, configs.AccelKVM, "", `/srv/web1.toml:1: accel: kvm does not work here: QEMU with -accel kvm -cpu host: exit status 1: no: use accel = "auto" or "tcg"`},
		{"tcg, works", works, configs.AccelTCG, configs.AccelTCG, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := parseSpec(t, `accel = "`+string(tt.accel)+`"`, disk)
			got, err := chooseAccel(t.Context(), g, tt.qemu)
			if got != tt.want || (err == nil) != (tt.err == "") || (err != nil && err.Error() != tt.err) {
				t.Errorf("%q, %v; want %q, %s", got, err, tt.want, tt.err)
			}
		})
	}
}

// The probe runs once for a QEMU, and again for another one or another CPU.
func TestProbeIsRemembered(t *testing.T) {
	fakeKVM(t)
	runs := filepath.Join(t.TempDir(), "runs")
	qemu := fakeQEMU(t, "echo $* >>"+runs+"; echo SeaBIOS")
	forgetVerdict(t, qemu, "qemu64")
	count := func() int {
		data, _ := os.ReadFile(runs)
		return strings.Count(string(data), "\n")
	}
	plain, other := &configs.Guest{}, &configs.Guest{CPU: "qemu64"}
	for _, step := range []struct {
		g    *configs.Guest
		want int
	}{{plain, 1}, {plain, 1}, {other, 2}, {plain, 2}, {other, 2}} {
		if err := kvmWorks(t.Context(), step.g, qemu); err != nil || count() != step.want {
			t.Errorf("%d runs, %v; want %d", count(), err, step.want)
		}
	}
	if err := os.Chtimes(qemu, time.Now(), time.Now().Add(-time.Hour)); err != nil { // an upgrade
		t.Fatal(err)
	}
	forgetVerdict(t, qemu, "host")
	if err := kvmWorks(t.Context(), plain, qemu); err != nil || count() != 3 {
		t.Errorf("after an upgrade: %d runs, %v; want 3", count(), err)
	}
}

// A probe that was cut short says nothing of KVM.
func TestProbeCutShortIsForgotten(t *testing.T) {
	fakeKVM(t)
	qemu := fakeQEMU(t, "exec sleep 60")
	cache := forgetVerdict(t, qemu, "host")
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := kvmWorks(ctx, &configs.Guest{}, qemu); err == nil {
		t.Error("works")
	}
	if data, err := os.ReadFile(cache); err == nil {
		t.Errorf("kept: %q", data)
	}
}

// The real QEMU on this machine's /dev/kvm, whatever it is worth: the choice is
// the same with and without the cache, and quick with it.
func TestAccelOfThisMachine(t *testing.T) {
	needKVMDevice(t)
	qemu, err := exec.LookPath(platforms[configs.ArchX86].binary)
	if err != nil {
		lack(t, "needs QEMU: apt-get install qemu-system-x86")
	}
	for _, cpu := range []string{"", "qemu64"} {
		t.Run("cpu "+cpu, func(t *testing.T) {
			g := parseSpec(t, disk)
			g.CPU = cpu
			model := cpu
			if model == "" {
				model = "host"
			}
			cache := forgetVerdict(t, qemu, model)
			first, err := chooseAccel(t.Context(), g, qemu)
			if err != nil {
				t.Fatal(err)
			}
			verdict, err := os.ReadFile(cache)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%s: %q", first, verdict)
			start := time.Now()
			second, err := chooseAccel(t.Context(), g, qemu)
			if err != nil || second != first {
				t.Errorf("%s and then %s, %v", first, second, err)
			}
			if took := time.Since(start); took > probeTimeout/2 {
				t.Errorf("took %v from the cache", took)
			}
			if (first == configs.AccelKVM) != (len(verdict) == 0) {
				t.Errorf("%s with the verdict %q", first, verdict)
			}
		})
	}
}

func TestFirstLine(t *testing.T) {
	for text, want := range map[string]string{"": "it said nothing", "\n \n": "it said nothing", "\n a \nb": "a", "a": "a"} {
		if got := firstLine([]byte(text)); got != want {
			t.Errorf("%q of %q, want %q", got, text, want)
		}
	}
}
